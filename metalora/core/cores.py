"""How many cores this process may use."""

import os


def cores() -> int:
    """Cores of the machine, or those that the process is bound to where the system tells."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
