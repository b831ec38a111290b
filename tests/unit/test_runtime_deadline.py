"""Deadlines are spent in shares and never go negative."""

from __future__ import annotations

import pytest

from services.runtime.clock import SystemClock
from services.runtime.deadline import Deadline, current_deadline, use_deadline
from services.runtime.errors import DeadlineExceeded


class ManualClock:
    """A clock that stands still until told."""

    def __init__(self) -> None:
        self.now_s = 1_000.0

    def wall_ms(self) -> int:
        return int(self.now_s * 1_000)

    def monotonic_s(self) -> float:
        return self.now_s


def test_remaining_counts_down_to_zero() -> None:
    clock = ManualClock()
    deadline = Deadline.after_ms(2_000, clock)
    assert (deadline.remaining_s(), deadline.remaining_ms(), deadline.expired()) == (2.0, 2_000, False)
    clock.now_s += 1.5
    assert deadline.remaining_ms() == 500
    clock.now_s += 5
    assert (deadline.remaining_s(), deadline.remaining_ms(), deadline.expired()) == (0.0, 0, True)


def test_shares_and_reserves() -> None:
    clock = ManualClock()
    deadline = Deadline.after_ms(1_000, clock)
    assert deadline.share(0.25).remaining_ms() == 250
    assert deadline.minus_ms(500).remaining_ms() == 500
    assert deadline.at_most_ms(250).remaining_ms() == 250
    assert deadline.at_most_ms(3_000).remaining_ms() == 1_000
    clock.now_s += 2
    assert deadline.share(1.0).remaining_ms() == 0


def test_spent_deadline_is_refused_definitely() -> None:
    clock = ManualClock()
    deadline = Deadline.after_ms(10, clock)
    deadline.check("the search")
    clock.now_s += 1
    with pytest.raises(DeadlineExceeded, match="before the search") as caught:
        deadline.check("the search")
    assert caught.value.definite


def test_current_deadline_belongs_to_the_call() -> None:
    with pytest.raises(AssertionError, match="no call is under way"):
        current_deadline()
    outer, inner = Deadline.after_ms(1_000), Deadline.after_ms(500)
    with use_deadline(outer):
        with use_deadline(inner):
            assert current_deadline() is inner
        assert current_deadline() is outer


def test_system_clock_units() -> None:
    clock = SystemClock()
    assert clock.wall_ms() > 1_600_000_000_000
    assert clock.monotonic_s() <= clock.monotonic_s()
