"""Floor 1: frozen text-to-image models as the rest of the project sees them."""

import logging

# What optional libraries say when diffusers imports them is no news to anybody.
for _library in ("torch.utils._pytree", "bitsandbytes", "diffusers.quantizers.torchao"):
    logging.getLogger(_library).setLevel(logging.ERROR)
