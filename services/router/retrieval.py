"""Queries to hits: every shard searched at the level asked for, merged into one ranking per query."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from opentelemetry.trace import Span

from observability import metrics, names, spans
from ostraka.v1 import passage_pb2, router_pb2, shard_pb2
from services.router import fusion
from services.router.catalogue import Collection, Model
from services.router.coverage import FRESHNESS, refuse_partial, session_token, shard_coverage
from services.router.fusion import Fused
from services.router.provenance import hit_of
from services.router.read_request import Reading
from services.router.read_types import LegSender, ReadTools, Reply, ShardOutcome
from services.router.search_legs import Questions, SearchLegs, ShardAnswer
from services.router.search_mode import DENSE, HYBRID, LEXICAL, TWO_STAGE, Ranking
from services.router.steady_read import steady_read
from services.router.vectors import F32
from services.runtime.deadline import Deadline

_METHODS = {
    DENSE: "exact score",
    LEXICAL: "bm25",
    HYBRID: "reciprocal rank",
    TWO_STAGE: "bm25 of the nearest",
}


@dataclass(frozen=True, slots=True)
class Retrieved:
    """What a search brought, one result per query."""

    results: Sequence[router_pb2.QueryResult]
    coverage: Sequence[passage_pb2.ShardCoverage]
    session_token: bytes
    statistics_age_ms: int = 0
    """Of the oldest corpus statistics that BM25 used; 0 in DENSE mode."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to look for: per query a unit vector (dim,) float32, the words, or both, as the ranking needs."""

    vectors: Sequence[NDArray[np.float32] | None]
    words: Sequence[str]
    ranking: Ranking
    exact: bool = False
    filter: passage_pb2.Filter | None = None


def retrieval_span(reading: Reading, ranking: Ranking, parent: Span | None = None) -> Span:
    """The span a search's legs stand under; the caller ends it."""
    return spans.start_span(
        f"{names.SPAN_RETRIEVAL} {reading.collection.name}",
        attributes={
            names.GEN_AI_OPERATION: "retrieval",
            names.GEN_AI_DATA_SOURCE: reading.collection.name,
            names.GEN_AI_TOP_K: ranking.k,
            names.OPENINFERENCE_KIND: "RETRIEVER",
            names.CONSISTENCY: FRESHNESS[reading.level].value,
            names.SEARCH_MODE: ranking.name,
        },
        parent=parent,
    )


class Retrieval:
    """Searches collections."""

    def __init__(self, tools: ReadTools, legs: SearchLegs) -> None:
        self._tools, self._legs = tools, legs

    async def search(
        self, reading: Reading, wanted: Wanted, *, model: Model, deadline: Deadline, span: Span
    ) -> Retrieved:
        """The best passages for each query. `span`: from `retrieval_span`.

        Raises Unavailable when a shard cannot be read at the level and partial answers were not allowed.
        """
        collection = reading.collection
        queries = [_query(vector, words) for vector, words in zip(wanted.vectors, wanted.words, strict=True)]

        def sender(members: Collection) -> LegSender[ShardAnswer]:
            return partial(self._legs.send, Questions(members, queries, wanted.ranking, wanted.exact, wanted.filter))

        _, outcomes = await steady_read(
            collection,
            collection.shards,
            FRESHNESS[reading.level],
            reading.session,
            self._tools,
            sender,
            names.SPAN_SHARD_SEARCH,
            span,
            deadline,
            reading.max_staleness_ms,
        )
        _count(outcomes, collection.name)
        refuse_partial(outcomes, reading)
        replies = {outcome.shard: outcome.reply for outcome in outcomes if outcome.reply is not None}
        results = _merged(replies, len(queries), wanted.ranking, model, span)
        coverage = [
            shard_coverage(
                outcome,
                reading.level,
                outcome.reply.value.index_epoch if outcome.reply else "",
                outcome.reply.value.rows_live if outcome.reply else 0,
                outcome.reply.value.staleness_ms if outcome.reply else None,
            )
            for outcome in outcomes
        ]
        age_ms = max((reply.value.statistics_age_ms for reply in replies.values()), default=0)
        return Retrieved(results, coverage, session_token(reading, outcomes), age_ms)


def _count(outcomes: Sequence[ShardOutcome[ShardAnswer]], collection: str) -> None:
    labels = {"collection": collection}
    for role, count in (
        (names.LEG_HEDGE, sum(outcome.hedges for outcome in outcomes)),
        (names.LEG_RETRY, sum(outcome.retries for outcome in outcomes)),
    ):
        if count:
            metrics.add(metrics.LEGS, count, {**labels, "role": role})
    missing = sum(outcome.reply is None for outcome in outcomes)
    if missing:
        metrics.add(metrics.SHARDS_UNAVAILABLE, missing, labels)


def _query(vector: NDArray[np.float32] | None, words: str) -> shard_pb2.SearchQuery:
    query = shard_pb2.SearchQuery(text=words)
    if vector is not None:
        query.vector.dim, query.vector.data = len(vector), vector.astype(F32, copy=False).tobytes()
    return query


_Lists = list[tuple[int, Sequence[shard_pb2.ShardHit]]]
_Ranked = list[Fused[shard_pb2.ShardHit]]


def _merged(
    replies: Mapping[int, Reply[ShardAnswer]], queries: int, ranking: Ranking, model: Model, parent: Span
) -> list[router_pb2.QueryResult]:
    """One ranking per query, passages and provenance filled in."""
    fuse = spans.start_span(names.SPAN_FUSE, parent=parent)
    results: list[router_pb2.QueryResult] = []
    candidates = 0
    for query in range(queries):
        dense: _Lists = [(shard, reply.value.results[query].hits) for shard, reply in replies.items()]
        lexical: _Lists = []
        if ranking.needs_text:
            lexical = [(shard, reply.value.results[query].lexical_hits) for shard, reply in replies.items()]
        candidates += sum(len(hits) for _, hits in (*dense, *lexical))
        hits = []
        for rank, found in enumerate(_ranked(dense, lexical, ranking), start=1):
            reply = replies[found.shard]
            hits.append(
                hit_of(
                    found,
                    _payload(found, dense),
                    replica=reply.replica,
                    index_epoch=reply.value.index_epoch,
                    rank=rank,
                    model=model,
                )
            )
        results.append(router_pb2.QueryResult(hits=hits))
    if fuse.is_recording():
        fuse.set_attributes(_fusion_attributes(ranking, candidates, sum(len(result.hits) for result in results)))
    spans.end_span(fuse)
    return results


def _ranked(dense: _Lists, lexical: _Lists, ranking: Ranking) -> _Ranked:
    if ranking.mode == HYBRID:
        return fusion.fuse(dense, lexical, ranking.k, ranking.depth, ranking.weights)
    if ranking.mode == LEXICAL:
        return fusion.lexical_ranking(lexical, ranking.k)
    if ranking.mode == TWO_STAGE:
        return fusion.two_stage(dense, ranking.k, ranking.depth)
    return fusion.dense_ranking(dense, ranking.k)


def _payload(found: Fused[shard_pb2.ShardHit], dense: _Lists) -> bytes:
    """A passage in both lists of a shard has its payload in the dense one, even where that list's part in the
    fusion ended before it."""
    hit = found.hit
    if hit.payload:
        return hit.payload
    for shard, hits in dense:
        if shard == found.shard:
            for other in hits:
                if (other.document_id, other.ordinal) == (hit.document_id, hit.ordinal):
                    return other.payload
    return b""


def _fusion_attributes(ranking: Ranking, candidates: int, kept: int) -> dict[str, spans.AttributeValue]:
    attributes: dict[str, spans.AttributeValue] = {
        names.FUSE_METHOD: _METHODS[ranking.mode],
        names.FUSE_IN: candidates,
        names.FUSE_OUT: kept,
    }
    if ranking.mode == HYBRID:
        weights = ranking.weights
        attributes[names.FUSE_WEIGHTS] = [weights.dense, weights.lexical]
        attributes[names.FUSE_RANK_CONSTANT] = weights.rank_constant
    if ranking.mode in (HYBRID, TWO_STAGE):
        attributes[names.FUSE_DEPTH] = ranking.depth
    return attributes
