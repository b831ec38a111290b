"""GtidSet against Python's sets, which are slow and obviously right."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.quorum.gtid import Gtid, GtidSet

gtids = st.builds(Gtid, st.integers(0, 3), st.integers(1, 25))
plain = st.frozensets(gtids, max_size=60)
unhurried = settings(deadline=None, max_examples=300)


def canonical(held: GtidSet) -> bool:
    """Sorted, disjoint, never touching, no empty source."""
    for spans in held.intervals().values():
        if not spans or any(first > last for first, last in spans):
            return False
        if any(after[0] <= before[1] + 1 for before, after in pairwise(spans)):
            return False
    return True


@given(plain, plain)
@unhurried
def test_algebra_is_that_of_sets(left: frozenset[Gtid], right: frozenset[Gtid]) -> None:
    mine, theirs = GtidSet.of(*left), GtidSet.of(*right)
    for ours, expected in (
        (mine, left),
        (mine.union(theirs), left | right),
        (mine.difference(theirs), left - right),
        (mine.intersection(theirs), left & right),
    ):
        assert canonical(ours)
        assert list(ours) == sorted(expected)
        assert len(ours) == len(expected)
        assert bool(ours) == bool(expected)
    assert mine.issuperset(theirs) == left.issuperset(right)
    assert (mine == theirs) == (left == right)
    assert (mine.digest() == theirs.digest()) == (left == right)


@given(plain, gtids)
@unhurried
def test_adding_and_containing(held: frozenset[Gtid], gtid: Gtid) -> None:
    before = GtidSet.of(*held)
    after = before.add(gtid)
    assert (gtid in before) == (gtid in held)
    assert set(after) == held | {gtid}
    assert canonical(after)
    assert set(before) == held, "adding changes nothing"


@given(st.lists(plain, min_size=1, max_size=5), st.integers(1, 6))
@unhurried
def test_at_least_counts(sets: list[frozenset[Gtid]], count: int) -> None:
    held = Counter(gtid for one in sets for gtid in one)
    found = GtidSet.at_least([GtidSet.of(*one) for one in sets], count)
    assert set(found) == {gtid for gtid, times in held.items() if times >= count}
    assert canonical(found)


@given(st.lists(gtids, max_size=40))
@unhurried
def test_any_way_of_building_gives_one_value(items: list[Gtid]) -> None:
    whole = GtidSet.of(*items)
    grown = GtidSet.EMPTY
    for gtid in reversed(items):
        grown = grown.add(gtid)
    spans = {source: [(g.seq, g.seq) for g in items if g.source == source] for source in {g.source for g in items}}
    assert whole == grown == GtidSet.from_intervals(spans)
    assert hash(whole) == hash(grown)
    assert GtidSet.from_intervals(whole.intervals()) == whole


@pytest.mark.parametrize("intervals", [{1: [(0, 3)]}, {1: [(3, 2)]}, {-1: [(1, 1)]}, {1 << 64: [(1, 1)]}])
def test_impossible_intervals_are_refused(intervals: dict[int, list[tuple[int, int]]]) -> None:
    with pytest.raises(ValueError, match="gtid"):
        GtidSet.from_intervals(intervals)


def test_overlapping_intervals_are_joined() -> None:
    held = GtidSet.from_intervals({7: [(5, 9), (1, 4), (8, 12), (20, 20)]})
    assert dict(held.intervals()) == {7: ((1, 12), (20, 20))}
    assert repr(held) == "GtidSet(7:1-12,20-20)"


def test_only_gtids_are_contained() -> None:
    assert "7:1" not in GtidSet.of(Gtid(7, 1))
