"""Loads are averages of what was told, and assignments carry every cell once and nearly evenly."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from services.placement.assignment import grouped, lpt
from services.placement.load import HALF_LIFE_S, CellLoads, Weights, imbalance, shard_loads

LOADS = st.lists(st.integers(0, 1_000), min_size=1, max_size=40).map(lambda each: np.array(each, dtype=np.float64))


def test_a_rate_is_reached_by_halves() -> None:
    loads = CellLoads.first(0, [10, 20], 100.0, [5, 5])
    loads = loads.observed(HALF_LIFE_S, [10, 20], [5 + 1_200, 5])
    assert loads.probes_per_s.tolist() == [5.0, 0.0]  # half of 10 a second
    loads = loads.observed(2 * HALF_LIFE_S, [10, 20], [5 + 2_400, 5])
    assert loads.probes_per_s.tolist() == [7.5, 0.0]
    assert loads.scanned_per_s.tolist() == [7_500.0, 0.0]


@given(st.lists(st.floats(1, 500), min_size=1, max_size=12))
def test_the_average_depends_on_time_not_on_how_often_one_looks(steps: list[float]) -> None:
    loads = CellLoads.first(0, [1], 4.0, [0])
    now = 0.0
    for each in steps:
        now += each
        loads = loads.observed(now, [1], [round(now * 1_000)])
    assert loads.probes_per_s[0] == pytest.approx(1_000 * (1 - 0.5 ** (now / HALF_LIFE_S)), rel=1e-2)


def test_a_counter_that_begins_anew() -> None:
    loads = CellLoads.first(0, [1], 4.0, [1_000]).observed(HALF_LIFE_S, [1], [120])
    assert loads.probes_per_s[0] == 0.5  # half of 120 in 120 s


def test_shares_weigh_what_is_known() -> None:
    quiet = CellLoads.first(0, [30, 10], 4.0, [0, 0])
    assert quiet.shares(Weights()).tolist() == [0.75, 0.25], "without searches bytes alone count"
    busy = quiet.observed(1, [30, 10], [0, 99])
    assert busy.shares(Weights(0.5, 0.5)).tolist() == [0.375, 0.625]
    assert busy.shares(Weights(0, 1)).tolist() == [0.0, 1.0]
    assert CellLoads.first(0, [0, 0], 4.0, [0, 0]).shares(Weights()).tolist() == [0.0, 0.0]


def test_what_contradicts_itself_is_refused() -> None:
    loads = CellLoads.first(5, [1], 4.0, [0])
    for rows, probes in (([1, 2], [0, 0]), ([1], [-1]), ([1], [0, 0])):
        with pytest.raises(ValueError):
            loads.observed(6, rows, probes)
    with pytest.raises(ValueError, match="after one at"):
        loads.observed(5, [1], [0])
    with pytest.raises(ValueError):
        Weights(0, 0)
    with pytest.raises(ValueError):
        lpt(np.array([-1.0]), 2)


@given(LOADS, st.integers(1, 9))
def test_every_cell_is_assigned_once(loads: NDArray[np.float64], shards: int) -> None:
    owners = lpt(loads, shards)
    assert len(owners) == len(loads)
    assert set(owners) <= set(range(shards))
    assert shard_loads(loads, owners, shards).sum() == pytest.approx(loads.sum())


@given(LOADS, st.integers(1, 9))
def test_no_cell_begins_above_the_mean(loads: NDArray[np.float64], shards: int) -> None:
    """List scheduling: the last cell of the fullest shard was put where no more than the mean lay."""
    owners = np.array(lpt(loads, shards))
    fullest = shard_loads(loads, owners.tolist(), shards).argmax()
    last = loads[owners == fullest].min()
    assert loads[owners == fullest].sum() <= loads.sum() / shards + last * (1 - 1 / shards) + 1e-9


@given(st.lists(st.integers(1, 20), min_size=1, max_size=7), st.integers(1, 3))
def test_four_thirds_of_the_best_possible(loads: list[int], shards: int) -> None:
    values = np.array(loads, dtype=np.float64)
    best = min(shard_loads(values, owners, shards).max() for owners in product(range(shards), repeat=len(loads)))
    made = shard_loads(values, lpt(values, shards), shards).max()
    assert made <= (4 / 3 - 1 / (3 * shards)) * best + 1e-9


@st.composite
def placed(draw: st.DrawFn) -> tuple[NDArray[np.float32], NDArray[np.float64], int]:
    count = draw(st.integers(1, 40))
    rows = np.random.default_rng(draw(st.integers(0, 99))).standard_normal((count, 5))
    loads = np.array(draw(st.lists(st.integers(0, 50), min_size=count, max_size=count)), dtype=np.float64)
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32), loads, draw(st.integers(1, 9))


@given(placed())
def test_groups_hold_every_cell_and_are_bounded(given_: tuple[NDArray[np.float32], NDArray[np.float64], int]) -> None:
    centroids, loads, shards = given_
    owners = grouped(centroids, loads, shards, 1)
    assert len(owners) == len(loads)
    assert set(owners) <= set(range(shards))
    assert owners == grouped(centroids, loads, shards, 1)
    assert shard_loads(loads, owners, shards).max() <= max(1.1 * loads.sum() / shards, 0) + loads.max() + 1e-9


def test_near_cells_share_a_shard() -> None:
    corners = np.repeat(np.eye(4), 8, axis=0) + 0.1 * np.random.default_rng(3).standard_normal((32, 4))
    centroids = np.asarray(corners / np.linalg.norm(corners, axis=1, keepdims=True), dtype=np.float32)
    owners = grouped(centroids, np.ones(32), 4, 1)
    assert [len(set(owners[start : start + 8])) for start in range(0, 32, 8)] == [1, 1, 1, 1]
    assert imbalance(shard_loads(np.ones(32), owners, 4)) == 1.0
