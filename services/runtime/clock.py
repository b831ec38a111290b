"""The wall clock and the monotonic clock, as a value that can be replaced.

The only module of `services` that reads time. Decision modules get readings as arguments.
"""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Where a process gets its time from."""

    def wall_ms(self) -> int:
        """Unix time in whole milliseconds."""
        ...

    def monotonic_s(self) -> float:
        """Seconds since an arbitrary start; never goes back."""
        ...


class SystemClock:
    """The machine's clocks."""

    def wall_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def monotonic_s(self) -> float:
        return time.monotonic()


def thread_cpu_s() -> float:
    """CPU seconds that the calling thread has used."""
    return time.thread_time()


SYSTEM_CLOCK: Clock = SystemClock()
