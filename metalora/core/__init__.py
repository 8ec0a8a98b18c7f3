"""Floor 0: the mathematics and contracts of Meta-LoRA; no models, and no I/O but the atomic write."""
