"""Vectors to hits: every shard searched at the level asked for, merged into one ranking per query."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from opentelemetry.trace import Span

from observability import names, spans
from ostraka.v1 import passage_pb2, router_pb2, shard_pb2
from services.router.catalogue import Model
from services.router.coverage import FRESHNESS, refuse_partial, session_token, shard_coverage
from services.router.merge import merge
from services.router.provenance import hit_of
from services.router.quorum_read import QuorumRead
from services.router.read_request import Reading
from services.router.read_types import ReadTools, ShardOutcome
from services.router.search_legs import Questions, SearchLegs, ShardAnswer
from services.router.vectors import F32
from services.runtime.deadline import Deadline


@dataclass(frozen=True, slots=True)
class Retrieved:
    """What a search brought, one result per query."""

    results: Sequence[router_pb2.QueryResult]
    coverage: Sequence[passage_pb2.ShardCoverage]
    session_token: bytes


def retrieval_span(reading: Reading, k: int, parent: Span | None = None) -> Span:
    """The span a search's legs stand under; the caller ends it."""
    return spans.start_span(
        f"{names.SPAN_RETRIEVAL} {reading.collection.name}",
        attributes={
            names.GEN_AI_OPERATION: "retrieval",
            names.GEN_AI_DATA_SOURCE: reading.collection.name,
            names.GEN_AI_TOP_K: k,
            names.OPENINFERENCE_KIND: "RETRIEVER",
            names.CONSISTENCY: FRESHNESS[reading.level].value,
        },
        parent=parent,
    )


class Retrieval:
    """Searches collections."""

    def __init__(self, tools: ReadTools, legs: SearchLegs) -> None:
        self._tools, self._legs = tools, legs

    async def search(
        self,
        reading: Reading,
        vectors: Sequence[NDArray[np.float32]],
        k: int,
        *,
        exact: bool,
        model: Model,
        deadline: Deadline,
        span: Span,
    ) -> Retrieved:
        """The best `k` passages for each unit vector, shape (dim,) float32. `span`: from `retrieval_span`.

        Raises Unavailable when a shard cannot be read at the level and partial answers were not allowed.
        """
        collection = reading.collection
        questions = Questions(
            collection,
            [
                shard_pb2.SearchQuery(
                    vector=passage_pb2.Vector(dim=collection.dim, data=vector.astype(F32, copy=False).tobytes())
                )
                for vector in vectors
            ],
            k,
            exact,
        )

        read: QuorumRead[ShardAnswer] = QuorumRead(
            collection,
            collection.shards,
            FRESHNESS[reading.level],
            reading.session,
            self._tools,
            partial(self._legs.send, questions),
            names.SPAN_SHARD_SEARCH,
            span,
            deadline,
        )
        outcomes = await read.run()
        refuse_partial(outcomes, reading)
        results = _merged(outcomes, len(vectors), k, model, span)
        coverage = [
            shard_coverage(
                outcome,
                reading.level,
                outcome.reply.value.index_epoch if outcome.reply else "",
                outcome.reply.value.rows_live if outcome.reply else 0,
            )
            for outcome in outcomes
        ]
        return Retrieved(results, coverage, session_token(reading, outcomes))


def _merged(
    outcomes: Sequence[ShardOutcome[ShardAnswer]], queries: int, k: int, model: Model, parent: Span
) -> list[router_pb2.QueryResult]:
    """One ranking per query, passages and provenance filled in."""
    replies = {outcome.shard: outcome.reply for outcome in outcomes if outcome.reply is not None}
    fuse = spans.start_span(names.SPAN_FUSE, parent=parent)
    results: list[router_pb2.QueryResult] = []
    candidates = 0
    for query in range(queries):
        lists = [(shard, reply.value.results[query].hits) for shard, reply in replies.items()]
        candidates += sum(len(hits) for _, hits in lists)
        hits = []
        for rank, (shard, hit) in enumerate(merge(lists, k), start=1):
            reply = replies[shard]
            hits.append(
                hit_of(
                    hit,
                    shard=shard,
                    replica=reply.replica,
                    index_epoch=reply.value.index_epoch,
                    rank=rank,
                    model=model,
                )
            )
        results.append(router_pb2.QueryResult(hits=hits))
    if fuse.is_recording():
        fuse.set_attributes(
            {
                names.FUSE_METHOD: "exact score",
                names.FUSE_IN: candidates,
                names.FUSE_OUT: sum(len(result.hits) for result in results),
            }
        )
    spans.end_span(fuse)
    return results
