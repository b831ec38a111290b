"""Which faults follow each other, for how long, and which overlap: a function of the seed alone."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tests.chaos.fault import Fault

OVERLAP_SHARE = 0.3
"""How often a second fault begins before the first has ended."""
REST_S = (0.5, 2.0)
SHORT_RUN_HOLD_S = 5.0
"""In a run of a minute nothing lasts longer, so that it sees more."""


@dataclass(frozen=True, slots=True)
class Timed:
    """A fault and when it happens, in seconds from the beginning of its episode."""

    fault: Fault
    from_s: float
    to_s: float


@dataclass(frozen=True, slots=True)
class Episode:
    """Faults between two moments at which the mesh is whole."""

    faults: tuple[Timed, ...]
    rest_s: float
    """Of undisturbed traffic afterwards."""

    def __str__(self) -> str:
        return ", ".join(f"{timed.fault} {timed.from_s:.1f}-{timed.to_s:.1f} s" for timed in self.faults)


def episodes(seed: int, actions: Sequence[type[Fault]], hold_s_max: float) -> Iterator[Episode]:
    """Without end: every action once in random order, then again in another."""
    rng = random.Random(f"{seed}/nemesis")
    deck: list[type[Fault]] = []
    while True:
        if not deck:
            deck = rng.sample(actions, len(actions))
        first = _timed(deck.pop().draw(rng), 0.0, rng, hold_s_max)
        faults = [first]
        if deck and rng.random() < OVERLAP_SHARE:
            second = deck[-1].draw(rng)
            if not second.touches & first.fault.touches:
                deck.pop()
                faults.append(_timed(second, rng.uniform(0, first.to_s), rng, hold_s_max))
        yield Episode(tuple(faults), rng.uniform(*REST_S))


def _timed(fault: Fault, from_s: float, rng: random.Random, hold_s_max: float) -> Timed:
    least, most = fault.hold_s
    return Timed(fault, from_s, from_s + rng.uniform(least, min(most, hold_s_max)))
