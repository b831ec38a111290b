"""Simulated time: one thread, one heap of events, one seeded source of chance."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from random import Random

MS = 1_000
"""Microseconds in a millisecond; all simulated times are integer microseconds."""

Action = Callable[[], None]


class Timeline:
    """Runs actions in the order of their simulated times; equal times run in the order they were planned."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.now_us = 0
        self._planned: list[tuple[int, int, Action]] = []
        self._count = 0

    def after(self, delay_us: int, action: Action) -> None:
        """Plan `action` in `delay_us` microseconds."""
        assert delay_us >= 0
        self._count += 1
        heapq.heappush(self._planned, (self.now_us + delay_us, self._count, action))

    def run_until(self, end_us: int) -> None:
        """Run everything planned up to `end_us`."""
        while self._planned and self._planned[0][0] <= end_us:
            self.now_us, _, action = heapq.heappop(self._planned)
            action()
        self.now_us = max(self.now_us, end_us)
