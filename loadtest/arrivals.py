"""When calls are due: open-loop arrivals, fixed before the run begins.

A schedule is a pure function of its phases, its process and its seed. Nothing in it depends on how fast the mesh
answers, so a stall delays no later arrival (Schroeder et al., "Open Versus Closed", NSDI 2006).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise

import numpy as np
import numpy.typing as npt


class Process(StrEnum):
    """How arrivals are spaced inside a phase."""

    CONSTANT = "constant"
    POISSON = "poisson"


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """A stretch of constant offered rate."""

    name: str
    duration_s: float
    rate_per_s: float


@dataclass(frozen=True, slots=True)
class Arrival:
    """One call that is due `intended_s` seconds after the run began."""

    intended_s: float
    phase: str


def square_burst(*, duration_s: float, rate_per_s: float, factor: float, burst_share: float) -> tuple[Phase, ...]:
    """Baseline, burst and recovery; the burst offers `factor` times the rate for `burst_share` of the time.

    Baseline and recovery share the rest equally. Raises ValueError when the burst leaves them no time.
    """
    if not 0 < burst_share < 1:
        raise ValueError(f"burst_share must lie between 0 and 1, not {burst_share}")
    calm_s = duration_s * (1 - burst_share) / 2
    return (
        Phase(name="baseline", duration_s=calm_s, rate_per_s=rate_per_s),
        Phase(name="burst", duration_s=duration_s * burst_share, rate_per_s=rate_per_s * factor),
        Phase(name="recovery", duration_s=calm_s, rate_per_s=rate_per_s),
    )


def scaled(phases: Sequence[Phase], duration_s: float) -> tuple[Phase, ...]:
    """The same phases stretched or shortened to `duration_s` in all, each keeping its rate and its share."""
    factor = duration_s / sum(phase.duration_s for phase in phases)
    return tuple(
        Phase(name=phase.name, duration_s=phase.duration_s * factor, rate_per_s=phase.rate_per_s) for phase in phases
    )


def schedule(phases: Sequence[Phase], process: Process, seed: int) -> tuple[Arrival, ...]:
    """Every arrival of the run, ascending.

    Arrivals of unit rate are mapped through the inverse of the cumulative rate, which makes one continuous
    non-homogeneous process of all phases (time rescaling; Cinlar 1975): a phase boundary disturbs no gap.
    """
    ends_s = np.cumsum([phase.duration_s for phase in phases])
    expected = np.cumsum([phase.duration_s * phase.rate_per_s for phase in phases])
    units = _unit_arrivals(process, float(expected[-1]), np.random.default_rng(seed))
    due_s = np.interp(units, np.concatenate(([0.0], expected)), np.concatenate(([0.0], ends_s)))
    owner = np.searchsorted(expected, units, side="right").clip(max=len(phases) - 1)
    arrivals = tuple(Arrival(float(at), phases[int(phase)].name) for at, phase in zip(due_s, owner, strict=True))
    assert all(one.intended_s <= two.intended_s for one, two in pairwise(arrivals))
    return arrivals


def _unit_arrivals(process: Process, expected: float, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Arrival positions at unit rate on [0, expected)."""
    if process is Process.CONSTANT:
        return np.arange(0.5, expected, 1.0)
    # Drawn past the end with a margin of six standard deviations, then cut: a second draw is practically never due.
    positions = np.cumsum(rng.exponential(size=int(expected + 6 * expected**0.5) + 16))
    while positions[-1] < expected:
        more = positions[-1] + np.cumsum(rng.exponential(size=len(positions)))
        positions = np.concatenate((positions, more))
    return positions[positions < expected]
