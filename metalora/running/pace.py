"""How far a job is, how fast it goes, and how long it will take."""

import time
from collections import deque
from dataclasses import dataclass, field

WINDOW_SECONDS = 30.0
"""Speed is measured over this much of the past."""


@dataclass
class Pace:
    """One job's stage and speed; `clock` tells seconds."""

    stage: str = ""
    done: int = 0
    total: int = 0
    clock: object = time.monotonic
    _seen: deque[tuple[float, int]] = field(default_factory=deque)

    @property
    def kind(self) -> str:
        """The stage without what changes inside it: `Stage 1` of `Stage 1, bucket 3/10, warm-up`."""
        return self.stage.split(",")[0]

    def move(self, stage: str, done: int, total: int) -> None:
        """Take a report. Buckets and phases of one stage go on; another stage, or a smaller number, starts afresh."""
        now, kind = self.clock(), self.kind  # type: ignore[operator]
        self.stage = stage
        if self.kind != kind or done < self.done or total != self.total:
            self._seen.clear()
        self.done, self.total = done, total
        self._seen.append((now, done))
        while len(self._seen) > 2 and now - self._seen[0][0] > WINDOW_SECONDS:
            self._seen.popleft()

    @property
    def per_second(self) -> float | None:
        """Steps per second; None until two reports lie far enough apart."""
        if len(self._seen) < 2:
            return None
        (start, before), (end, after) = self._seen[0], self._seen[-1]
        return (after - before) / (end - start) if end - start >= 0.2 and after > before else None

    @property
    def seconds_left(self) -> float | None:
        """Until the stage ends, at this speed."""
        speed = self.per_second
        return None if speed is None else (self.total - self.done) / speed

    @property
    def speed(self) -> str:
        """For people: `5.2 it/s`, or `3.1 s/it` when slow."""
        speed = self.per_second
        if speed is None:
            return ""
        return f"{speed:.1f} it/s" if speed >= 1 else f"{1 / speed:.1f} s/it"

    def __str__(self) -> str:
        parts = [f"{self.stage} {self.done}/{self.total}", self.speed]
        if self.seconds_left:
            parts.append(f"{spoken(self.seconds_left)} left")
        return ", ".join(part for part in parts if part)


def spoken(seconds: float) -> str:
    """`45 s`, `3 min 20 s`, `2 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
