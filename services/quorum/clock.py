"""Versions from hybrid logical clocks.

Kulkarni et al., "Logical Physical Clocks and Consistent Snapshots in Globally Distributed Databases" (2014): 48 bits of
Unix milliseconds and a 16-bit counter in one integer that never goes back and stays close to the wall clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

COUNTER_BITS = 16
HLC_MAX = (1 << 64) - 1


def pack(physical_ms: int, counter: int = 0) -> int:
    """A clock reading from Unix milliseconds and a counter."""
    return physical_ms << COUNTER_BITS | counter


def physical_ms(hlc: int) -> int:
    """Unix milliseconds of a clock reading."""
    return hlc >> COUNTER_BITS


@dataclass(frozen=True, slots=True, order=True)
class Version:
    """What orders the writes of a document: the clock reading, then the writer that took it."""

    hlc: int
    source: int
    ZERO: ClassVar[Version]


Version.ZERO = Version(0, 0)


class HybridLogicalClock:
    """Gives one writer strictly ascending versions. Time is an argument."""

    def __init__(self, source: int) -> None:
        self._source = source
        self._last = 0

    def next(self, now_ms: int, at_least: int = 0) -> Version:
        """A version above every earlier one, above the reading `at_least`, and not behind `now_ms`.

        Raises OverflowError when the clock has run out of 64 bits.
        """
        self._last = max(pack(now_ms), self._last + 1, at_least + 1)
        if self._last > HLC_MAX:
            raise OverflowError("the hybrid logical clock has left 64 bits")
        return Version(self._last, self._source)
