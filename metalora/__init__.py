"""Meta-LoRA: meta-learned LoRA components for one-photo identity personalization."""

import logging

__version__ = "0.1.0"

# What optional libraries say when diffusers imports them is no news to anybody.
for _library in ("torch.utils._pytree", "bitsandbytes", "diffusers.quantizers.torchao"):
    logging.getLogger(_library).setLevel(logging.ERROR)
