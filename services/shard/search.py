"""One search of one replica's view: candidates by vector, by words or both, then documents and payloads of the best."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from opentelemetry.trace import Span

from observability import names, spans
from ostraka.v1 import passage_pb2, shard_pb2
from services.runtime.conditions import Condition
from services.shard import lexical_search, scoring, view_search
from services.shard.damage import PartDamagedError
from services.shard.filtering import Filters
from services.shard.lexical_queries import LexicalQueries
from services.shard.lexical_search import Scorer
from services.shard.lexical_view import lexical_parts
from services.shard.readers import Readers
from services.shard.rows_reader import LiveRow, RowsReader
from services.shard.view import View
from services.shard.view_search import Candidates
from services.shard.wire import version_to_wire

DENSE = passage_pb2.SEARCH_MODE_DENSE
LEXICAL = passage_pb2.SEARCH_MODE_LEXICAL
HYBRID = passage_pb2.SEARCH_MODE_HYBRID
TWO_STAGE = passage_pb2.SEARCH_MODE_TWO_STAGE


class ViewExpiredError(Exception):
    """Rows of the view are gone from disk: a repair replaced them, or the view is older than rows are kept."""


@dataclass(frozen=True, slots=True)
class SearchTask:
    """What to search for."""

    queries: NDArray[np.float32]
    """Unit vectors (n, dim); (n, 0) in LEXICAL mode."""
    k: int
    exact: bool
    include_payload: bool
    condition: Condition | None = None
    """What a passage must meet to be found; None: nothing."""
    mode: passage_pb2.SearchMode.ValueType = DENSE
    words: LexicalQueries | None = None
    """What BM25 searches for; None in DENSE mode."""


def narrowed(view: View, readers: Readers, task: SearchTask, filters: Filters) -> View:
    """The view restricted to what meets the task's condition, for `run`.

    Raises MetadataUnavailableError, DamagedRowError, StoreError.
    """
    if task.condition is None:
        return view
    with readers.lend() as reader:
        return filters.restrict(view, task.condition, reader)


def run(
    view: View, readers: Readers, task: SearchTask, filters: Filters | None = None, scorers: Sequence[Scorer] = ()
) -> list[shard_pb2.ShardQueryResult]:
    """The best `k` of each query by (score descending, document, ordinal), fewer only when fewer rows match.

    `scorers`: of each query, except in DENSE mode. Raises DamagedRowError, PartDamagedError, ViewExpiredError,
    MetadataDamagedError, StoreError.
    """
    near: list[Candidates] = []
    worded: list[Candidates] = []
    parts = lexical_parts(view) if scorers else ()
    if task.mode != LEXICAL:
        near = view_search.search(view, task.queries, task.k, exact=task.exact)
    if task.mode in (LEXICAL, HYBRID):
        worded = [lexical_search.search(parts, scorer, task.k) for scorer in scorers]
    with readers.lend() as reader:
        worded = [_cut(reader, candidates, task.k) for candidates in worded]
        wanted = {int(rid) for candidates in (*near, *worded) for rid in candidates.rids}
        rows = reader.by_rid(wanted)
    if len(rows) < len(wanted):
        raise ViewExpiredError(f"{len(wanted) - len(rows)} rows of view {view.number} are gone")
    if task.condition is not None and filters is not None:
        filters.check({rid: row.passage for rid, row in rows.items()}, task.condition)
    found = _Found(rows, view_search.part_names(view), task.include_payload)
    for query, candidates in zip(task.queries, near, strict=False):
        found.check_scores(candidates, query)
    results = [shard_pb2.ShardQueryResult() for _ in range(max(len(near), len(worded)))]
    for number, (result, candidates) in enumerate(zip(results, near, strict=False)):
        words = scorers[number] if task.mode == TWO_STAGE else None
        scores = None if words is None else lexical_search.scores_of(parts, words, candidates.rids)
        result.hits.extend(found.hits(candidates, task.k, scores))
    for result, candidates in zip(results, worded, strict=False):
        result.lexical_hits.extend(found.lexical_hits(candidates, task.k, result.hits))
    return results


def _cut(reader: RowsReader, candidates: Candidates, k: int) -> Candidates:
    """Exactly the best `k`: equal BM25 scores are common, and only the names of tied rows are read to choose."""
    if len(candidates.rids) <= k:
        return candidates
    tied = np.flatnonzero(candidates.scores == candidates.scores[k - 1])
    names_by_rid = reader.keys(candidates.rids[tied].tolist())
    if len(names_by_rid) < len(tied):
        raise ViewExpiredError(f"{len(tied) - len(names_by_rid)} rows are gone")
    first = int(tied[0])
    chosen = sorted(tied.tolist(), key=lambda place: names_by_rid[int(candidates.rids[place])])[: k - first]
    kept = np.concatenate([np.arange(first), np.array(chosen, dtype=np.int64)])
    return Candidates(candidates.scores[kept], candidates.rids[kept], candidates.parts[kept])


@dataclass(frozen=True, slots=True)
class _Found:
    """The rows of a search, ready to become hits."""

    rows: dict[int, LiveRow]
    parts: Sequence[tuple[str, str]]
    include_payload: bool

    def check_scores(self, candidates: Candidates, query: NDArray[np.float32]) -> None:
        """Each score must be that of the row's own vector, whose checksum was verified: equal to the last bit, since
        `scoring.scores` does not depend on where a row is stored. A part that says otherwise is damaged."""
        flat = b"".join([self.rows[rid].passage.vector for rid in candidates.rids.tolist()])
        vectors = np.frombuffer(flat, dtype="<f2").reshape(len(candidates.rids), len(query))
        wrong = np.flatnonzero(scoring.scores(vectors, query) != candidates.scores)
        if len(wrong):
            raise PartDamagedError(self.parts[int(candidates.parts[wrong[0]])][0])

    def hits(
        self, candidates: Candidates, k: int, lexical: NDArray[np.float32] | None = None
    ) -> list[shard_pb2.ShardHit]:
        """The best `k` by cosine, with their BM25 scores where those were asked for."""
        scores = {} if lexical is None else dict(zip(candidates.rids.tolist(), lexical.tolist(), strict=True))
        return [
            self._hit(rid, part, score=score, lexical_score=scores.get(rid, 0.0), with_payload=True)
            for score, rid, part in self._ranked(candidates)[:k]
        ]

    def lexical_hits(
        self, candidates: Candidates, k: int, near: Iterable[shard_pb2.ShardHit]
    ) -> list[shard_pb2.ShardHit]:
        """The best `k` by BM25; the payload of a hit that is among `near` is left out."""
        told = {(hit.document_id, hit.ordinal) for hit in near}
        found = []
        for score, rid, part in self._ranked(candidates)[:k]:
            passage = self.rows[rid].passage
            fresh = (passage.document_id, passage.ordinal) not in told
            found.append(self._hit(rid, part, lexical_score=score, with_payload=fresh))
        return found

    def _ranked(self, candidates: Candidates) -> list[tuple[float, int, int]]:
        entries = zip(candidates.scores.tolist(), candidates.rids.tolist(), candidates.parts.tolist(), strict=True)
        return sorted(entries, key=lambda entry: (-entry[0], *self._name(entry[1])))

    def _name(self, rid: int) -> tuple[str, int]:
        passage = self.rows[rid].passage
        return passage.document_id, passage.ordinal

    def _hit(
        self, rid: int, part: int, *, score: float = 0.0, lexical_score: float = 0.0, with_payload: bool
    ) -> shard_pb2.ShardHit:
        passage = self.rows[rid].passage
        index_part, index_kind = self.parts[part]
        return shard_pb2.ShardHit(
            document_id=passage.document_id,
            ordinal=passage.ordinal,
            version=version_to_wire(passage.version),
            score=score,
            payload=passage.payload if self.include_payload and with_payload else b"",
            index_part=index_part,
            index_kind=index_kind,
            lexical_score=lexical_score,
        )


def mode_word(mode: passage_pb2.SearchMode.ValueType) -> str:
    """A mode as traces name it: dense, lexical, hybrid, two_stage."""
    return passage_pb2.SearchMode.Name(mode).removeprefix("SEARCH_MODE_").lower()


def open_spans(traceparents: Sequence[str], shard: int, replica_id: str, leg_role: str) -> list[Span]:
    """One `search` span per distinct leg; queries that share a traceparent share a span."""
    distinct = list(dict.fromkeys(traceparents)) or [""]
    attributes: spans.Attributes = {
        names.SHARD: shard,
        names.REPLICA: replica_id,
        names.LEG_ROLE: leg_role or names.LEG_PRIMARY,
    }
    return [spans.start_span(names.SPAN_SEARCH, attributes=attributes, parent=parent or None) for parent in distinct]


def describe(held: Sequence[Span], view: View, task: SearchTask, result: shard_pb2.ShardSearchResult) -> None:
    """Put what was searched onto the spans. Values of filters and words of queries stay out of traces."""
    nprobe = max((part.segment.manifest.nprobe for part in view.parts), default=0)
    for span in held:
        span.set_attributes(
            {
                names.INDEX_EPOCH: view.index_epoch,
                names.BATCH_SIZE: len(task.queries),
                names.SEARCH_MODE: mode_word(task.mode),
                names.QUEUE_WAIT_US: result.queue_wait_us,
                names.SEARCH_US: result.search_us,
                names.DELTA_ROWS: view.delta.live,
                names.SEGMENTS: len(view.parts),
                names.ROWS_LIVE: view.rows_live,
                names.ROWS_DEAD: view.rows_dead,
                names.ROWS_MATCHING: result.rows_matching,
                names.FILTERED: task.condition is not None,
                names.NPROBE: nprobe,
            }
        )
        if task.words is not None:
            span.set_attributes(
                {
                    names.LEXICAL_TERMS: sum(len(query.terms) for query in task.words.queries),
                    names.LEXICAL_CANDIDATES: sum(len(found.lexical_hits) for found in result.results),
                    names.STATISTICS_AGE_MS: result.statistics_age_ms,
                }
            )
