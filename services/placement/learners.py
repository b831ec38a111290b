"""How many learners a hot shard gets: one more when its searches queue, one fewer when they long have not.

Learners answer quorum reads without a vote, so their number changes neither R, W nor N. The two bounds lie a factor of
ten apart and each has to hold for its whole time, counted anew after every change: load near one bound changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final

HALF_LIFE_S: Final = 10.0
"""Of the average of queue wait."""


class Change(Enum):
    """What to do about a shard's learners."""

    NONE = 0
    ADD = 1
    REMOVE = -1


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of the policy. Raises ValueError."""

    add_above_ms: float = 20.0
    add_after_s: float = 60.0
    remove_below_ms: float = 2.0
    remove_after_s: float = 600.0
    learners_max: int = 3

    def __post_init__(self) -> None:
        if not 0 <= self.remove_below_ms < self.add_above_ms:
            raise ValueError(f"remove below {self.remove_below_ms} ms, add above {self.add_above_ms} ms: no gap")
        if self.add_after_s <= 0 or self.remove_after_s <= 0 or self.learners_max < 0:
            raise ValueError("times are positive, the number of learners not negative")


@dataclass(frozen=True, slots=True)
class HotShard:
    """What is remembered of one shard from one look to the next."""

    wait_ms: float | None = None
    """Average queue wait of searches; None: nothing seen yet."""
    at_s: float = 0.0
    above_since_s: float | None = None
    below_since_s: float | None = None


def step(state: HotShard, now_s: float, wait_ms: float, learners: int, limits: Limits) -> tuple[HotShard, Change]:
    """One look at the mean queue wait since the last. `learners`: there are now, those under way included.

    `now_s` never goes back. Raises ValueError when it does or a wait is negative.
    """
    if not wait_ms >= 0 or (state.wait_ms is not None and now_s < state.at_s):
        raise ValueError(f"a wait of {wait_ms} ms at {now_s} s, after a look at {state.at_s} s")
    average = wait_ms
    if state.wait_ms is not None:
        new = 1.0 - 0.5 ** ((now_s - state.at_s) / HALF_LIFE_S)
        average = state.wait_ms + new * (wait_ms - state.wait_ms)
    above = _since(state.above_since_s, now_s, average > limits.add_above_ms)
    below = _since(state.below_since_s, now_s, average < limits.remove_below_ms)
    change = Change.NONE
    if above is not None and now_s - above >= limits.add_after_s and learners < limits.learners_max:
        change, above = Change.ADD, now_s
    elif below is not None and now_s - below >= limits.remove_after_s and learners > 0:
        change, below = Change.REMOVE, now_s
    return HotShard(average, now_s, above, below), change


def _since(known_s: float | None, now_s: float, holds: bool) -> float | None:
    if not holds:
        return None
    return now_s if known_s is None else known_s
