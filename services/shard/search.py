"""One search of one replica's view: candidates, documents and payloads of the best, their spans."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from opentelemetry.trace import Span

from observability import names, spans
from ostraka.v1 import shard_pb2
from services.runtime.conditions import Condition
from services.shard import view_search
from services.shard.filtering import Filters
from services.shard.readers import Readers
from services.shard.rows_reader import LiveRow
from services.shard.view import View
from services.shard.view_search import Candidates
from services.shard.wire import version_to_wire


class ViewExpiredError(Exception):
    """Rows of the view are gone from disk: a repair replaced them, or the view is older than rows are kept."""


@dataclass(frozen=True, slots=True)
class SearchTask:
    """What to search for; `queries` unit float32 (n, dim)."""

    queries: NDArray[np.float32]
    k: int
    exact: bool
    include_payload: bool
    condition: Condition | None = None
    """What a passage must meet to be found; None: nothing."""


def narrowed(view: View, readers: Readers, task: SearchTask, filters: Filters) -> View:
    """The view restricted to what meets the task's condition, for `run`.

    Raises MetadataUnavailableError, DamagedRowError, StoreError.
    """
    if task.condition is None:
        return view
    with readers.lend() as reader:
        return filters.restrict(view, task.condition, reader)


def run(
    view: View, readers: Readers, task: SearchTask, filters: Filters | None = None
) -> list[shard_pb2.ShardQueryResult]:
    """The best `k` of each query by (score descending, document, ordinal), fewer only when fewer rows live.

    Raises DamagedRowError, ViewExpiredError, MetadataDamagedError, StoreError.
    """
    found = view_search.search(view, task.queries, task.k, exact=task.exact)
    wanted = {int(rid) for candidates in found for rid in candidates.rids}
    with readers.lend() as reader:
        rows = reader.by_rid(wanted)
    if len(rows) < len(wanted):
        raise ViewExpiredError(f"{len(wanted) - len(rows)} rows of view {view.number} are gone")
    if task.condition is not None and filters is not None:
        filters.check({rid: row.passage for rid, row in rows.items()}, task.condition)
    names_of_parts = view_search.part_names(view)
    return [_result(candidates, rows, names_of_parts, task) for candidates in found]


def _result(
    candidates: Candidates, rows: dict[int, LiveRow], parts: Sequence[tuple[str, str]], task: SearchTask
) -> shard_pb2.ShardQueryResult:
    entries = [
        (-float(score), rows[int(rid)].passage, parts[int(part)])
        for score, rid, part in zip(candidates.scores, candidates.rids, candidates.parts, strict=True)
    ]
    entries.sort(key=lambda entry: (entry[0], entry[1].document_id, entry[1].ordinal))
    return shard_pb2.ShardQueryResult(
        hits=[
            shard_pb2.ShardHit(
                document_id=passage.document_id,
                ordinal=passage.ordinal,
                version=version_to_wire(passage.version),
                score=-negated,
                payload=passage.payload if task.include_payload else b"",
                index_part=part,
                index_kind=kind,
            )
            for negated, passage, (part, kind) in entries[: task.k]
        ]
    )


def open_spans(traceparents: Sequence[str], shard: int, replica_id: str, leg_role: str) -> list[Span]:
    """One `search` span per distinct leg; queries that share a traceparent share a span."""
    distinct = list(dict.fromkeys(traceparents)) or [""]
    attributes: spans.Attributes = {
        names.SHARD: shard,
        names.REPLICA: replica_id,
        names.LEG_ROLE: leg_role or names.LEG_PRIMARY,
    }
    return [spans.start_span(names.SPAN_SEARCH, attributes=attributes, parent=parent or None) for parent in distinct]


def describe(
    held: Sequence[Span], view: View, matching: int, task: SearchTask, queue_wait_us: int, search_us: int
) -> None:
    """Put what was searched onto the spans; `matching` rows met the filter, whose values stay out of traces."""
    nprobe = max((part.segment.manifest.nprobe for part in view.parts), default=0)
    for span in held:
        span.set_attributes(
            {
                names.INDEX_EPOCH: view.index_epoch,
                names.BATCH_SIZE: len(task.queries),
                names.QUEUE_WAIT_US: queue_wait_us,
                names.SEARCH_US: search_us,
                names.DELTA_ROWS: view.delta.live,
                names.SEGMENTS: len(view.parts),
                names.ROWS_LIVE: view.rows_live,
                names.ROWS_DEAD: view.rows_dead,
                names.ROWS_MATCHING: matching,
                names.FILTERED: task.condition is not None,
                names.NPROBE: nprobe,
            }
        )
