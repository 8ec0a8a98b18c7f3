"""Floor 2: images from exported LoRA files and from the untouched base."""
