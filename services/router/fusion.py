"""Two lists of hits, one by nearness and one by words, joined into one ranking. Pure.

Weighted reciprocal rank fusion: the sum of weight / (rank constant + rank) over the lists a passage is in (Cormack,
Clarke and Buettcher, "Reciprocal Rank Fusion outperforms Condorcet and individual Rank Learning Methods", SIGIR 2009).
It needs ranks only, so cosines and BM25 scores need not be comparable. Two-stage ordering takes the nearest
passages and sorts them by BM25.

The newest version of a document over both lists wins as a whole (C7 in quorum.md): it is chosen before ranks are
given, so a stale passage neither appears nor pushes others down.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Generic, NamedTuple, Protocol, TypeVar

from services.router.merge import BY_SCORE, HitLike, Score, merge, newest_versions

RANK_CONSTANT = 10
"""The paper's 60 makes rank 1 and rank 20 nearly equal. Chosen on judgements that no benchmark here reports: SciFact's
training claims 0.713 -> 0.717 and CoSQA's development queries 0.530 -> 0.556 nDCG@10, at equal weights."""
BY_LEXICAL_SCORE: Score = attrgetter("lexical_score")


class ScoredHit(HitLike, Protocol):
    """A hit with both scores: `score` by cosine, `lexical_score` by BM25; each 0 where it is not known."""

    @property
    def lexical_score(self) -> float: ...


H = TypeVar("H", bound=ScoredHit)
Lists = Sequence[tuple[int, Sequence[H]]]


@dataclass(frozen=True, slots=True)
class Weights:
    """How much each list counts, at least one of them more than 0."""

    dense: float = 1.0
    lexical: float = 1.0
    rank_constant: int = RANK_CONSTANT

    def __post_init__(self) -> None:
        assert self.rank_constant >= 1, "a rank constant of 0 is refused with the request"
        assert min(self.dense, self.lexical) >= 0, "negative weights are refused with the request"
        assert 0 < self.dense + self.lexical < math.inf, "weights that order nothing are refused with the request"

    def score(self, dense_rank: int, lexical_rank: int) -> float:
        """Of a passage with these ranks, from 1; 0: not in that list."""
        dense = self.dense / (self.rank_constant + dense_rank) if dense_rank else 0.0
        lexical = self.lexical / (self.rank_constant + lexical_rank) if lexical_rank else 0.0
        return dense + lexical


class Fused(NamedTuple, Generic[H]):
    """One passage of a ranking, as it stood in each list. Ranks count from 1; 0 and None: not in that list.

    A tuple, because every hit of every search becomes one.
    """

    shard: int
    dense: H | None
    lexical: H | None
    dense_rank: int
    lexical_rank: int
    score: float
    """What the ranking is ordered by."""

    @property
    def hit(self) -> H:
        """The passage, from the list that carries its payload."""
        found = self.dense if self.dense is not None else self.lexical
        assert found is not None, "a passage is in at least one list"
        return found


def dense_ranking(lists: Lists[H], k: int) -> list[Fused[H]]:
    """The `k` nearest passages by cosine, ties by passage id."""
    return [
        Fused(shard, hit, None, rank, 0, hit.score)
        for rank, (shard, hit) in enumerate(merge(lists, k, BY_SCORE), start=1)
    ]


def lexical_ranking(lists: Lists[H], k: int) -> list[Fused[H]]:
    """The best `k` passages by BM25, ties by passage id."""
    return [
        Fused(shard, None, hit, 0, rank, hit.lexical_score)
        for rank, (shard, hit) in enumerate(merge(lists, k, BY_LEXICAL_SCORE), start=1)
    ]


def fuse(dense: Lists[H], lexical: Lists[H], k: int, depth: int, weights: Weights) -> list[Fused[H]]:
    """The best `k` of the first `depth` of each list by reciprocal rank fusion, ties by passage id.

    A list of weight 0 brings no passages of its own.
    """
    newest = newest_versions(dense, lexical)
    near = _ranked(merge(dense, depth, BY_SCORE, newest)) if weights.dense else {}
    worded = _ranked(merge(lexical, depth, BY_LEXICAL_SCORE, newest)) if weights.lexical else {}
    joined = []
    for passage in near.keys() | worded.keys():
        dense_rank, shard, dense_hit = near.get(passage, (0, -1, None))
        lexical_rank, lexical_shard, lexical_hit = worded.get(passage, (0, -1, None))
        joined.append(
            Fused(
                shard if dense_hit is not None else lexical_shard,
                dense_hit,
                lexical_hit,
                dense_rank,
                lexical_rank,
                weights.score(dense_rank, lexical_rank),
            )
        )
    return _best(joined, k)


def two_stage(lists: Lists[H], k: int, depth: int) -> list[Fused[H]]:
    """The `depth` nearest passages ordered by BM25, the best `k` of them; equal BM25 by nearness, then passage id.

    `lexical_rank` is the place among those that share a word with the query; 0 for those that share none.
    """
    near = merge(lists, depth, BY_SCORE)
    ranked = sorted(enumerate(near, start=1), key=lambda entry: (-entry[1][1].lexical_score, entry[0]))
    return [
        Fused(
            shard,
            hit,
            hit if hit.lexical_score > 0 else None,
            dense_rank,
            rank if hit.lexical_score > 0 else 0,
            hit.lexical_score,
        )
        for rank, (dense_rank, (shard, hit)) in enumerate(ranked[:k], start=1)
    ]


def _ranked(merged: Sequence[tuple[int, H]]) -> dict[tuple[str, int], tuple[int, int, H]]:
    """Rank, shard and hit by passage."""
    return {(hit.document_id, hit.ordinal): (rank, shard, hit) for rank, (shard, hit) in enumerate(merged, start=1)}


def _best(joined: list[Fused[H]], k: int) -> list[Fused[H]]:
    joined.sort(key=lambda fused: (-fused.score, fused.hit.document_id, fused.hit.ordinal))
    return joined[:k]
