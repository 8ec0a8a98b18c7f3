"""Memory that was given back: to the C library, to the next job."""

import contextlib
import ctypes
import gc
import resource
import sys
from pathlib import Path

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


def reset_peak_memory() -> None:
    """Let the process's peak memory count from now; where the system refuses, it counts from the process's start."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory_mb() -> int:
    """Largest resident memory of this process in MiB since `reset_peak_memory`."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return round(int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) / 1024)
    return round(
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1 << 10)
    )


def device_peak_mb() -> int:
    """Largest memory in MiB: of the GPU's tensors where this process uses one, else of the process."""
    import torch

    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return round(torch.cuda.max_memory_allocated() / (1 << 20))
    return peak_memory_mb()


def free_memory() -> None:
    """Let go of what only reference cycles still hold: a trainer keeps its model in one, and the next job's encoders
    must not meet the last job's denoiser."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
