"""Meta-LoRA: meta-learned LoRA components for one-photo identity personalization."""

__version__ = "0.1.0"
