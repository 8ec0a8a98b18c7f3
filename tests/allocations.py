"""What torch's allocator hands out, told by torch's own profiler."""

import gc
from collections.abc import Callable

from torch.profiler import ProfilerActivity, profile


def allocated_peak(body: Callable[[], object]) -> int:
    """What torch's allocator handed out at most during `body` beyond what was there before, by torch's profiler.

    The least of three times, the first of which may also fill a library's caches.
    """
    body()
    gc.collect()
    return min(_once(body) for _ in range(3))


def _once(body: Callable[[], object]) -> int:
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as told:
        body()
    results = told.profiler.kineto_results  # pyright: ignore[reportOptionalMemberAccess]
    events = [event for event in results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda it: it.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak
