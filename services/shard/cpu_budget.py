"""A share of one core for background work: whoever builds asks between chunks and is made to wait when it is used up.

Time is CPU time of the calling thread, so waiting for the disk or for the interpreter costs nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from services.runtime.clock import SYSTEM_CLOCK, thread_cpu_s

BURST_S = 0.002
"""CPU seconds that may be used at once: a longer burst would be felt by searches."""
GIVE_WAY_S = 0.03
"""Longest wait for others at one pause: they finish, but a replica that always writes still builds."""


SHARE_MIN = 0.02
"""Background work that never ran would fill the delta."""


class StoppedError(Exception):
    """The work is not wanted any more; what it wrote so far is to be removed."""


class CpuBudget:
    """A token bucket of CPU seconds, shared by any number of threads."""

    def __init__(
        self,
        share: float,
        *,
        thread_s: Callable[[], float] = thread_cpu_s,
        now_s: Callable[[], float] = SYSTEM_CLOCK.monotonic_s,
        wait: Callable[[float], bool] | None = None,
        give_way: Callable[[float], object] = lambda _: None,
    ) -> None:
        """`share` of one core; at least 1: no limit. `wait` waits for so many seconds, or less when it stops;
        `give_way`, until those whom the work would disturb have ended, for so many seconds at most."""
        self._share = max(SHARE_MIN, share)
        self._thread_s, self._now_s = thread_s, now_s
        self._stopped = threading.Event()
        self._wait = wait or self._stopped.wait
        self._give_way = give_way
        self._lock = threading.Lock()
        self._tokens, self._filled_s = BURST_S, now_s()
        self._used = threading.local()

    def stop(self) -> None:
        """From now on every `pause` raises StoppedError."""
        self._stopped.set()

    def begin(self) -> None:
        """What the calling thread did so far is not counted."""
        self._used.since_s = self._thread_s()

    def pause(self, *, urgent: bool = False) -> None:
        """Account for the CPU time since the last call, wait until it is paid and give way, unless it is `urgent`.

        Raises StoppedError.
        """
        if self._stopped.is_set():
            raise StoppedError
        now = self._thread_s()
        used = now - getattr(self._used, "since_s", now)
        self._used.since_s = now
        owed_s = self._owed(used) if self._share < 1 else 0.0
        if urgent:
            return
        if owed_s > 0:
            self._wait(owed_s / self._share)
        self._give_way(GIVE_WAY_S)
        if self._stopped.is_set():
            raise StoppedError

    def _owed(self, used_s: float) -> float:
        with self._lock:
            now_s = self._now_s()
            self._tokens = min(BURST_S, self._tokens + (now_s - self._filled_s) * self._share) - used_s
            self._filled_s = now_s
            # What urgent work took beyond a second is forgiven, or nothing would run for minutes after it.
            self._tokens = max(self._tokens, -1.0)
            return -self._tokens
