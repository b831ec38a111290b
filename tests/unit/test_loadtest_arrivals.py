"""Schedules: as many arrivals as offered, spaced as promised, the same for the same seed."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.arrivals import Phase, Process, scaled, schedule, square_burst

PHASES = (
    Phase(name="baseline", duration_s=20, rate_per_s=10),
    Phase(name="burst", duration_s=10, rate_per_s=100),
    Phase(name="recovery", duration_s=20, rate_per_s=10),
)


def test_constant_arrivals_keep_their_gap_inside_each_phase() -> None:
    arrivals = schedule(PHASES, Process.CONSTANT, seed=1)
    assert len(arrivals) == 200 + 1_000 + 200
    for phase in PHASES:
        gaps = np.diff([one.intended_s for one in arrivals if one.phase == phase.name])
        assert np.allclose(gaps, 1 / phase.rate_per_s)


def test_poisson_arrivals_have_the_offered_rate_and_exponential_gaps() -> None:
    arrivals = schedule((Phase(name="only", duration_s=1_000, rate_per_s=20),), Process.POISSON, seed=7)
    gaps = np.diff([one.intended_s for one in arrivals])
    assert abs(len(arrivals) - 20_000) < 6 * math.sqrt(20_000)
    assert abs(float(np.mean(gaps)) - 1 / 20) < 0.002
    assert abs(float(np.std(gaps) / np.mean(gaps)) - 1) < 0.05


def test_burst_arrivals_are_those_of_the_burst() -> None:
    arrivals = schedule(PHASES, Process.POISSON, seed=3)
    burst = [one.intended_s for one in arrivals if one.phase == "burst"]
    assert abs(len(burst) - 1_000) < 6 * math.sqrt(1_000)
    assert min(burst) >= 20
    assert max(burst) <= 30


def test_seed_decides_everything() -> None:
    assert schedule(PHASES, Process.POISSON, 5) == schedule(PHASES, Process.POISSON, 5)
    assert schedule(PHASES, Process.POISSON, 5) != schedule(PHASES, Process.POISSON, 6)


@given(
    st.lists(st.tuples(st.floats(0.1, 5), st.floats(0.1, 200)), min_size=1, max_size=5),
    st.sampled_from(list(Process)),
    st.integers(0, 1_000),
)
def test_every_arrival_lies_in_its_own_phase(shape: list[tuple[float, float]], process: Process, seed: int) -> None:
    phases = [Phase(name=str(i), duration_s=d, rate_per_s=r) for i, (d, r) in enumerate(shape)]
    ends = np.cumsum([phase.duration_s for phase in phases])
    last = 0.0
    for arrival in schedule(phases, process, seed):
        index = int(arrival.phase)
        assert arrival.intended_s >= last
        assert ends[index] - phases[index].duration_s - 1e-9 <= arrival.intended_s <= ends[index] + 1e-9
        last = arrival.intended_s


def test_scaling_keeps_rates_and_shares() -> None:
    short = scaled(PHASES, 5)
    assert [phase.duration_s for phase in short] == [2, 1, 2]
    assert [phase.rate_per_s for phase in short] == [10, 100, 10]


def test_square_burst() -> None:
    phases = square_burst(duration_s=60, rate_per_s=10, factor=5, burst_share=0.2)
    assert [phase.name for phase in phases] == ["baseline", "burst", "recovery"]
    assert [phase.rate_per_s for phase in phases] == [10, 50, 10]
    assert sum(phase.duration_s for phase in phases) == pytest.approx(60)
    with pytest.raises(ValueError, match="burst_share"):
        square_burst(duration_s=60, rate_per_s=10, factor=5, burst_share=1)
