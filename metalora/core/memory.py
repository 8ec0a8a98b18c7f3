"""Memory that was given back: to the C library, to the next job."""

import ctypes
import gc

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # malloc.h


def keep_freed_memory() -> None:
    """Let glibc keep freed memory instead of giving it back to the system after every step.

    A training step on the CPU frees its activations and asks for the same sizes again in the next step; by default
    these pages go back and are faulted in anew, thousands per step. Elsewhere than on glibc this does nothing.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(_MMAP_THRESHOLD, 32 << 20)
    mallopt(_TRIM_THRESHOLD, (1 << 31) - 1)
    mallopt(_TOP_PAD, 256 << 20)


def free_memory() -> None:
    """Let go of what only reference cycles still hold: a trainer keeps its model in one, and the next job's encoders
    must not meet the last job's denoiser."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
