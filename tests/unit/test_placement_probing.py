"""Probing grows with e, and the e that is chosen is the least that was measured to be enough."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from services.placement import probing
from services.placement.probing import candidates, cells_within, choose_e, measured, reaches, recalls, shards_to_ask

DISTANCES = st.lists(st.floats(0, 2, allow_subnormal=False), min_size=1, max_size=30).map(np.array)
E = st.floats(0, 5)


@st.composite
def tables(draw: st.DrawFn) -> tuple[NDArray[np.float64], list[int]]:
    distances = draw(DISTANCES)
    return distances, draw(st.lists(st.integers(0, 7), min_size=len(distances), max_size=len(distances)))


@given(tables(), E, E)
def test_a_greater_e_asks_the_same_and_more(
    table: tuple[NDArray[np.float64], list[int]], one: float, two: float
) -> None:
    distances, owners = table
    low, high = sorted((one, two))
    few, many = shards_to_ask(distances, owners, low), shards_to_ask(distances, owners, high)
    assert many[: len(few)] == few
    assert len(cells_within(distances, low)) <= len(cells_within(distances, high))


@given(tables(), E)
def test_two_at_least_all_at_most_nearest_first(table: tuple[NDArray[np.float64], list[int]], e: float) -> None:
    distances, owners = table
    asked = shards_to_ask(distances, owners, e)
    assert len(set(asked)) == len(asked)
    assert min(2, len(set(owners))) <= len(asked) <= len(set(owners))
    nearest = [min(d for d, owner in zip(distances, owners, strict=True) if owner == shard) for shard in asked]
    assert nearest == sorted(nearest)
    assert set(asked) >= {owners[cell] for cell in cells_within(distances, e)}
    assert set(shards_to_ask(distances, owners, 1e10)) == set(owners)


@given(tables(), E)
def test_what_was_measured_is_what_is_asked(table: tuple[NDArray[np.float64], list[int]], e: float) -> None:
    distances, owners = table
    reach = reaches(distances[None, :], owners, 8)
    for chosen in (e, *[each for each in reach[0].tolist() if math.isfinite(each)]):
        _, asked = recalls(reach, np.ones((1, 8), dtype=np.int64), 10, chosen)
        assert asked[0] == len(shards_to_ask(distances, owners, chosen))


def test_what_contradicts_itself_is_refused() -> None:
    with pytest.raises(ValueError, match="owners"):
        shards_to_ask(np.ones(2), [0], 0.1)
    with pytest.raises(ValueError, match="e=-1"):
        shards_to_ask(np.ones(1), [0], -1)


def sample(seed: int, queries: int = 300) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Queries whose ten neighbours lie with falling probability in farther shards: (reach, found)."""
    random = np.random.default_rng(seed)
    reach = np.sort(random.exponential(0.5, (queries, 8)), axis=1)
    reach[:, 0] = 0.0
    chance = np.exp(-3 * reach)
    found = np.stack([random.multinomial(10, each / each.sum()) for each in chance])
    return reach, found.astype(np.int64)


@given(st.integers(0, 50))
def test_the_least_e_that_is_surely_enough(seed: int) -> None:
    reach, found = sample(seed)
    choice = choose_e(reach, found, 10, 0.95)
    assert choice.recall - probing.SURE_ERRORS * choice.recall_error >= 0.95
    assert choice == measured(reach, found, 10, choice.e)
    assert candidates(reach)[-1] == reach.max()
    for e in candidates(reach):
        if e < choice.e:
            less = measured(reach, found, 10, e)
            assert less.recall - probing.SURE_ERRORS * less.recall_error < 0.95


@given(st.integers(0, 50), E, E)
def test_recall_grows_with_e(seed: int, one: float, two: float) -> None:
    reach, found = sample(seed, 20)
    low, high = sorted((one, two))
    assert (recalls(reach, found, 10, low)[0] <= recalls(reach, found, 10, high)[0]).all()


def test_full_recall_asks_who_holds_anything() -> None:
    reach, found = sample(1)
    choice = choose_e(reach, found, 10, 1.0)
    assert choice.recall == 1.0
    assert choice.shards_mean > choose_e(reach, found, 10, 0.9).shards_mean


def test_few_queries_prove_nothing() -> None:
    reach, found = sample(1, 99)
    with pytest.raises(ValueError, match="99 queries"):
        choose_e(reach, found, 10, 0.99)
