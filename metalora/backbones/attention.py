"""Which attention kernel a denoiser uses: torch's own, or one that is installed beside it."""

from typing import Any

import torch

from metalora.core.errors import UserError

_KEY = "backbone.attention"
_HOPPER = (9, 0)


def use_attention(denoiser: Any, name: str | None) -> None:
    """Set the attention backend of a denoiser that lies where it will compute.

    Args:
        name: diffusers' name of it, or "best": FlashAttention 3 or 2 where it is installed and the device, the
            precision and the model allow it, torch's own otherwise. None: torch's own.

    Raises:
        UserError: no such backend, or it is not installed.
    """
    name = best_attention(device=denoiser.device, dtype=denoiser.dtype) if name == "best" else name
    if name is None:
        return
    from diffusers.models.attention_dispatch import _AttentionBackendRegistry
    from diffusers.utils import logging

    everybodys = _AttentionBackendRegistry._active_backend  # this is for one denoiser, not for all that come
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # "experimental" is no news
    try:
        denoiser.set_attention_backend(name)
    except (ValueError, RuntimeError, ImportError) as error:
        raise UserError(
            "the attention backend cannot be used",
            expected="an installed one of diffusers' attention backends, best, or null",
            got=f"{name}: {error}".splitlines()[0],
            key=_KEY,
        ) from error
    finally:
        _AttentionBackendRegistry._active_backend = everybodys
        logging.set_verbosity(verbosity)


def best_attention(*, device: torch.device, dtype: torch.dtype) -> str | None:
    """The fastest installed backend that has a backward pass; None: torch's own."""
    from diffusers.utils import import_utils

    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        return None
    if import_utils.is_flash_attn_3_available() and torch.cuda.get_device_capability(device) == _HOPPER:
        return "_flash_3"
    return "flash" if import_utils.is_flash_attn_available() else None
