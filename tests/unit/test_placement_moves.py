"""Plans never make it worse, and the policies wait, act, and do not flap."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from services.placement import learners, rebalancing
from services.placement.learners import Change, HotShard, Limits
from services.placement.load import imbalance, shard_loads
from services.placement.moves import AIM, MOVES_MAX, THRESHOLD, plan
from services.placement.rebalancing import PATIENCE_S, Rebalancing

State = tuple[NDArray[np.float64], list[int], list[int], int]


@st.composite
def assignments(draw: st.DrawFn) -> State:
    """Loads, rows, owners, shards."""
    cells, shards = draw(st.integers(1, 40)), draw(st.integers(1, 8))

    def numbers(high: int) -> list[int]:
        return draw(st.lists(st.integers(0, high), min_size=cells, max_size=cells))

    return np.array(numbers(1_000), dtype=np.float64), numbers(5_000), numbers(shards - 1), shards


@given(assignments())
def test_no_step_raises_the_greatest_load(state: State) -> None:
    loads, rows, owners, shards = state
    made = plan(loads, rows, owners, shards)
    table = list(owners)
    greatest = shard_loads(loads, table, shards).max()
    for move in made.moves:
        assert table[move.cell] == move.source != move.target
        assert move.rows == rows[move.cell]
        assert max(move.source_after, move.target_after) < move.source_before
        table[move.cell] = move.target
        now = shard_loads(loads, table, shards).max()
        assert now <= greatest + 1e-9
        greatest = now
    assert tuple(table) == made.owners
    assert made.imbalance_after == pytest.approx(imbalance(shard_loads(loads, table, shards)))
    assert len(made.moves) <= MOVES_MAX


@given(assignments())
def test_a_plan_starts_above_the_threshold_and_ends_at_the_aim(state: State) -> None:
    loads, rows, owners, shards = state
    made = plan(loads, rows, owners, shards)
    assert bool(made.moves) <= (made.imbalance_before > THRESHOLD)
    if made.imbalance_before <= THRESHOLD:
        assert "nothing needs to move" in made.verdict
    elif made.imbalance_after > AIM and len(made.moves) < MOVES_MAX:
        assert "helps no more" in made.verdict


def test_few_rows_are_preferred() -> None:
    loads = np.array([4.0, 4.0, 4.0, 1.0])
    made = plan(loads, [9_000, 10, 9_000, 1], [0, 0, 0, 1], 2)
    assert [(move.cell, move.source, move.target, move.rows) for move in made.moves] == [(1, 0, 1, 10)]
    assert made.rows == 10
    assert "bucket 1 (" in made.moves[0].reason
    assert "92.31% -> 61.54%" in made.moves[0].reason


def test_one_cell_that_is_too_hot_is_named() -> None:
    made = plan(np.array([100.0, 1.0, 1.0]), [1, 1, 1], [0, 1, 2], 3)
    assert not made.moves
    assert "bucket 0 alone is 98.04%" in made.verdict


@pytest.mark.parametrize(
    ("loads", "rows", "owners"),
    [([1.0], [1, 2], [0]), ([1.0], [1], [2]), ([-1.0], [1], [0]), ([1.0], [-1], [0]), ([], [], [])],
)
def test_what_contradicts_itself_is_refused(loads: list[float], rows: list[int], owners: list[int]) -> None:
    with pytest.raises(ValueError):
        plan(np.array(loads), rows, owners, 2)


def run(
    series: Sequence[NDArray[np.float64]], owners: list[int], shards: int, step_s: float = 60.0
) -> list[tuple[float, int]]:
    """(when, cell) of every move when each takes one step."""
    state, made = Rebalancing(), []
    for number, loads in enumerate(series):
        state, move = rebalancing.step(state, number * step_s, loads, [1] * len(owners), owners, shards)
        if move is not None:
            made.append((number * step_s, move.cell))
            during, second = rebalancing.step(state, number * step_s, loads, [1] * len(owners), owners, shards)
            assert (during, second) == (state, None), "one move at a time"
            owners[move.cell] = move.target
            state = rebalancing.finished(state)
    return made


HOT = np.array([4.0, 4.0, 1.0, 1.0])
EVEN = np.ones(4)


def test_ten_minutes_without_a_pause() -> None:
    assert run([HOT] * 10, [0, 0, 1, 1], 2) == []
    assert run([HOT] * 11, [0, 0, 1, 1], 2) == [(PATIENCE_S, 0)]
    assert run(([HOT] * 9 + [EVEN]) * 5, [0, 0, 1, 1], 2) == []


@given(assignments(), st.integers(1, 200))
def test_under_constant_load_moves_end(state: State, steps: int) -> None:
    loads, _, owners, shards = state
    table = list(owners)
    before = shard_loads(loads, table, shards).max()
    run([loads] * 400, table, shards)
    assert shard_loads(loads, table, shards).max() <= before
    settled = list(table)
    late = run([loads] * steps, table, shards)
    assert not late or imbalance(shard_loads(loads, settled, shards)) > THRESHOLD


@given(st.lists(st.floats(0.9, 1.1), min_size=4, max_size=4), st.integers(0, 99))
def test_noise_moves_nothing(base: list[float], seed: int) -> None:
    random = np.random.default_rng(seed)
    series = [np.array(base) * random.uniform(0.95, 1.05, 4) for _ in range(120)]
    assert run(series, [0, 0, 1, 1], 2) == []


def test_only_a_move_under_way_can_be_finished() -> None:
    with pytest.raises(ValueError, match="no move"):
        rebalancing.finished(Rebalancing())


def policy(waits_ms: Sequence[float], count: int = 0, step_s: float = 5.0) -> list[tuple[float, Change]]:
    """(when, what) of every change, each in effect at once."""
    state = HotShard()
    made: list[tuple[float, Change]] = []
    for number, wait_ms in enumerate(waits_ms):
        state, change = learners.step(state, number * step_s, wait_ms, count, Limits())
        count += change.value
        assert 0 <= count <= Limits().learners_max
        if change is not Change.NONE:
            made.append((number * step_s, change))
    return made


def test_a_learner_after_a_minute_of_queueing_and_away_after_ten_quiet_ones() -> None:
    assert policy([30.0] * 12) == []
    assert policy([30.0] * 13) == [(60.0, Change.ADD)]
    assert [when for when, _ in policy([30.0] * 200)] == [60.0, 120.0, 180.0], "no more than learners_max"
    assert policy([1.0] * 120, 1) == []
    assert policy([1.0] * 121, 1) == [(600.0, Change.REMOVE)]
    assert policy([1.0] * 400, 0) == [], "none to take away"


def test_between_the_bounds_nothing_changes() -> None:
    assert policy([10.0] * 1_000, 1) == []
    assert policy(([200.0] * 6 + [0.0] * 18) * 20, 1) == [], "bursts of half a minute"


@given(st.lists(st.tuples(st.floats(0, 200), st.integers(1, 60)), min_size=1, max_size=30))
def test_changes_are_as_rare_as_the_bounds_say(pieces: list[tuple[float, int]]) -> None:
    made = policy([wait for wait, times in pieces for _ in range(times)])
    for (before, _), (after, change) in pairwise(made):
        assert after - before >= (Limits().add_after_s if change is Change.ADD else Limits().remove_after_s)


def test_limits_and_times_that_contradict_themselves() -> None:
    with pytest.raises(ValueError, match="no gap"):
        Limits(add_above_ms=2.0)
    state, _ = learners.step(HotShard(), 10, 1, 0, Limits())
    with pytest.raises(ValueError, match="after a look"):
        learners.step(state, 9, 1, 0, Limits())
