"""The deadline of the call under way, and how it is spent.

The server interceptor sets it; a handler reads `current_deadline()` and gives each hop its share.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from services.runtime.clock import SYSTEM_CLOCK, Clock
from services.runtime.errors import DeadlineExceeded


@dataclass(frozen=True, slots=True)
class Deadline:
    """A point in monotonic time by which an answer must be given."""

    expires_monotonic_s: float
    clock: Clock = field(default=SYSTEM_CLOCK, repr=False, compare=False)

    @classmethod
    def after_ms(cls, duration_ms: float, clock: Clock = SYSTEM_CLOCK) -> Deadline:
        """The deadline `duration_ms` from now."""
        return cls(clock.monotonic_s() + duration_ms / 1_000, clock)

    def remaining_s(self) -> float:
        """Seconds left, never negative."""
        return max(0.0, self.expires_monotonic_s - self.clock.monotonic_s())

    def remaining_ms(self) -> int:
        """Whole milliseconds left, never negative."""
        return int(self.remaining_s() * 1_000)

    def expired(self) -> bool:
        return self.clock.monotonic_s() >= self.expires_monotonic_s

    def share(self, fraction: float) -> Deadline:
        """The deadline that leaves `fraction` (0 to 1) of the remaining time to one hop."""
        assert 0.0 <= fraction <= 1.0, fraction
        return Deadline(self.clock.monotonic_s() + self.remaining_s() * fraction, self.clock)

    def minus_ms(self, reserve_ms: float) -> Deadline:
        """The deadline `reserve_ms` earlier, so that the caller still has time to answer."""
        return Deadline(self.expires_monotonic_s - reserve_ms / 1_000, self.clock)

    def at_most_ms(self, duration_ms: float) -> Deadline:
        """The earlier of this deadline and `duration_ms` from now."""
        return Deadline(min(self.expires_monotonic_s, self.clock.monotonic_s() + duration_ms / 1_000), self.clock)

    def check(self, what: str) -> None:
        """Raise DeadlineExceeded when nothing is left for `what`, which was not begun."""
        if self.expired():
            raise DeadlineExceeded(f"the deadline was spent before {what} could begin", definite=True)


_CURRENT: ContextVar[Deadline] = ContextVar("ostraka_deadline")


def current_deadline() -> Deadline:
    """The deadline of the call under way. Outside a call there is none: background work makes its own."""
    try:
        return _CURRENT.get()
    except LookupError:
        raise AssertionError("no call is under way; background work must make its own Deadline") from None


@contextmanager
def use_deadline(deadline: Deadline) -> Iterator[Deadline]:
    """Make `deadline` the current one within the block."""
    token = _CURRENT.set(deadline)
    try:
        yield deadline
    finally:
        _CURRENT.reset(token)
