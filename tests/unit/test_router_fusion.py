"""Fusion of a dense and a lexical list, compared with the obvious way of doing it."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.quorum.clock import Version
from services.router.fusion import Weights, dense_ranking, fuse, lexical_ranking, two_stage


@dataclass(frozen=True)
class FakeHit:
    document_id: str
    ordinal: int
    score: float
    lexical_score: float
    version: Version


hits = st.builds(
    FakeHit,
    st.sampled_from(["a", "b", "c", "d"]),
    st.integers(0, 3),
    st.sampled_from([0.1, 0.2, 0.3, 0.4]),
    st.sampled_from([0.0, 1.0, 2.5, 7.0]),
    st.builds(Version, st.integers(1, 2), st.integers(1, 2)),
)
lists = st.lists(st.tuples(st.integers(0, 2), st.lists(hits, max_size=7)), max_size=3)
weights = st.builds(
    Weights, st.sampled_from([0.5, 1.0, 2.0]), st.sampled_from([0.0, 0.5, 1.0]), st.sampled_from([1, 2, 60])
)


def hit(document_id: str, score: float = 0.0, lexical: float = 0.0, version: int = 1, ordinal: int = 0) -> FakeHit:
    return FakeHit(document_id, ordinal, score, lexical, Version(version, 1))


def places(every: list[FakeHit], key: str, depth: int, newest: dict[str, Version]) -> dict[tuple[str, int], int]:
    """Rank of each passage in one list, by sorting everything."""
    best: dict[tuple[str, int], float] = {}
    for one in every:
        if one.version == newest[one.document_id]:
            passage = (one.document_id, one.ordinal)
            best[passage] = max(best.get(passage, -1.0), getattr(one, key))
    ordered = sorted(best, key=lambda passage: (-best[passage], passage))
    return {passage: rank for rank, passage in enumerate(ordered[:depth], start=1)}


@given(lists, lists, weights, st.integers(1, 6), st.integers(0, 6))
def test_fusion_is_the_formula_over_both_lists(
    dense: list[tuple[int, list[FakeHit]]],
    lexical: list[tuple[int, list[FakeHit]]],
    weighed: Weights,
    k: int,
    deeper: int,
) -> None:
    depth = k + deeper
    near = [one for _, shard in dense for one in shard]
    worded = [one for _, shard in lexical for one in shard]
    newest: dict[str, Version] = {}
    for one in near + worded:
        newest[one.document_id] = max(newest.get(one.document_id, one.version), one.version)
    by_score = places(near, "score", depth, newest) if weighed.dense else {}
    by_words = places(worded, "lexical_score", depth, newest) if weighed.lexical else {}

    def exact(passage: tuple[str, int]) -> Fraction:
        total = Fraction(0)
        for ranks, weight in ((by_score, weighed.dense), (by_words, weighed.lexical)):
            if passage in ranks:
                total += Fraction(weight) / (weighed.rank_constant + ranks[passage])
        return total

    found = fuse(dense, lexical, k, depth, weighed)
    wanted = by_score.keys() | by_words.keys()
    assert len(found) == min(k, len(wanted))
    # Sums of two floats can differ from the exact ones in the last bit: the order must be right beyond it.
    left_out = set(wanted)
    for fused in found:
        passage = (fused.hit.document_id, fused.hit.ordinal)
        assert fused.dense_rank == by_score.get(passage, 0)
        assert fused.lexical_rank == by_words.get(passage, 0)
        assert fused.score == pytest.approx(float(exact(passage)))
        assert fused.hit.version == newest[fused.hit.document_id]
        left_out.remove(passage)
    keys = [(-fused.score, fused.hit.document_id, fused.hit.ordinal) for fused in found]
    assert keys == sorted(keys)
    if found and left_out:
        assert float(exact(max(left_out, key=exact))) <= found[-1].score * (1 + 1e-12)


@given(lists, lists, weights, st.integers(1, 8))
def test_the_order_in_which_shards_answer_does_not_matter(
    dense: list[tuple[int, list[FakeHit]]], lexical: list[tuple[int, list[FakeHit]]], weighed: Weights, k: int
) -> None:
    def told(ranking: list[tuple[int, list[FakeHit]]], other: list[tuple[int, list[FakeHit]]]) -> list[object]:
        return [
            (one.hit.document_id, one.hit.ordinal, one.score, one.dense_rank, one.lexical_rank)
            for one in fuse(ranking, other, k, 8, weighed)
        ]

    assert told(dense, lexical) == told(dense[::-1], lexical[::-1])


def test_a_newer_version_in_either_list_ends_the_older_one_in_both() -> None:
    dense = [(0, [hit("a", 0.9), hit("b", 0.8)])]
    lexical = [(1, [hit("b", lexical=2.0), hit("a", lexical=1.0, version=2, ordinal=1)])]
    found = fuse(dense, lexical, 10, 10, Weights())
    assert [(one.hit.document_id, one.hit.ordinal, one.hit.version.hlc) for one in found] == [("b", 0, 1), ("a", 1, 2)]
    # The stale passage does not hold a place either.
    assert found[0].dense_rank == 1


def test_mirrored_ranks_tie_by_passage_id() -> None:
    dense = [(0, [hit("z", 0.9), hit("a", 0.8)])]
    lexical = [(0, [hit("a", lexical=9.0), hit("z", lexical=8.0)])]
    found = fuse(dense, lexical, 2, 2, Weights())
    assert [one.hit.document_id for one in found] == ["a", "z"]
    assert found[0].score == found[1].score


def test_a_passage_in_one_list_only_has_rank_zero_in_the_other() -> None:
    (near, worded) = fuse([(0, [hit("a", 0.9)])], [(1, [hit("b", lexical=3.0)])], 5, 5, Weights(2.0, 1.0, 60))
    assert (near.shard, near.dense_rank, near.lexical_rank, near.score) == (0, 1, 0, 2 / 61)
    assert (worded.shard, worded.dense_rank, worded.lexical_rank, worded.score) == (1, 0, 1, 1 / 61)
    assert worded.dense is None
    assert near.lexical is None


def test_a_list_of_weight_zero_brings_nothing() -> None:
    found = fuse([(0, [hit("a", 0.9)])], [(0, [hit("b", lexical=3.0)])], 5, 5, Weights(1.0, 0.0))
    assert [one.hit.document_id for one in found] == ["a"]


@given(lists, st.integers(1, 6), st.integers(0, 6))
def test_two_stage_reorders_the_nearest_and_adds_none(
    dense: list[tuple[int, list[FakeHit]]], k: int, deeper: int
) -> None:
    depth = k + deeper
    near = dense_ranking(dense, depth)
    found = two_stage(dense, k, depth)
    place = {(one.hit.document_id, one.hit.ordinal): one for one in near}
    expected = sorted(near, key=lambda one: (-one.hit.lexical_score, one.dense_rank))[:k]
    assert [(one.hit, one.dense_rank) for one in found] == [(one.hit, one.dense_rank) for one in expected]
    assert [one.lexical_rank for one in found] == [
        rank if one.score > 0 else 0 for rank, one in enumerate(found, start=1)
    ]
    assert all(place[one.hit.document_id, one.hit.ordinal].dense_rank == one.dense_rank for one in found)


@given(lists, st.integers(1, 8))
def test_single_lists_rank_by_their_own_score(given_: list[tuple[int, list[FakeHit]]], k: int) -> None:
    near, worded = dense_ranking(given_, k), lexical_ranking(given_, k)
    assert [one.score for one in near] == sorted((one.hit.score for one in near), reverse=True)
    assert [one.score for one in worded] == sorted((one.hit.lexical_score for one in worded), reverse=True)
    assert [one.dense_rank for one in near] == list(range(1, len(near) + 1))
    assert [(one.dense_rank, one.lexical_rank) for one in worded] == [(0, n) for n in range(1, len(worded) + 1)]


@pytest.mark.parametrize("bad", [(-1.0, 1.0, 60), (0.0, 0.0, 60), (1.0, 1.0, 0), (float("nan"), 1.0, 60)])
def test_weights_that_order_nothing_are_a_defect(bad: tuple[float, float, int]) -> None:
    with pytest.raises(AssertionError):
        Weights(*bad)
