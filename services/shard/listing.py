"""Documents in the order of their ids, page by page: for listing, exporting and deleting by a condition.

Without a condition a page is read from the heads, in one transaction. With one, a view says which rows meet it: few
matching rows are looked up and sorted, many are met soon enough by walking the documents in order. Either way
every document on the page is read and evaluated once more, so neither a damaged index nor a change since the view can
put a document there that does not meet the condition.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from google.protobuf.message import DecodeError

from ostraka.v1 import passage_pb2, shard_pb2
from services.quorum.gtid import GtidSet
from services.quorum.rows import HeadRow, PassageRow
from services.runtime.conditions import Condition
from services.shard import schema
from services.shard.damage import DamagedRowError, RowName
from services.shard.filtering import Filters
from services.shard.readers import Readers
from services.shard.rows_reader import RowsReader
from services.shard.view import View
from services.shard.wire import head_to_wire, passage_to_wire

PAGE_BYTES_MAX: Final = 1024 * 1024
"""A page ends with the document that reaches this."""
DOCUMENTS_PER_READ: Final = 256
SORTED_ROWS_MAX: Final = 16_384
"""Up to so many matching rows, their documents are looked up and sorted."""
SAME_STATE_TRIES: Final = 4
"""How often a transaction is begun anew because a commit came between it and the view."""


@dataclass(frozen=True, slots=True)
class ListTask:
    """Which documents, how many, and what of them."""

    condition: Condition | None
    after: str
    """Documents behind this id, by UTF-8 bytes; empty: from the first."""
    limit: int
    with_passages: bool
    with_vectors: bool


@dataclass(frozen=True, slots=True)
class Page:
    """Some documents, ascending by id, as they are at `applied` or later."""

    applied: GtidSet
    documents: Sequence[shard_pb2.ListedDocument]
    more: bool
    """There are further matching documents behind the last."""


def list_documents(current: Callable[[], View], readers: Readers, filters: Filters, task: ListTask) -> Page:
    """One page. `current`: the newest view. Raises MetadataUnavailableError, DamagedRowError, StoreError."""
    with readers.lend() as reader:
        if task.condition is None:
            with reader.database.reading():
                applied, _ = reader.applied()
                return _page(reader, _heads(reader, task.after), filters, task, applied)
        for _ in range(SAME_STATE_TRIES - 1):
            with reader.database.reading():
                applied, _ = reader.applied()
                view = current()
                if view.applied == applied:
                    return _filtered(reader, view, filters, task, task.condition)
        with reader.database.reading():
            # Commits come faster than a view can be caught: documents may then be newer than what the page claims.
            view = current()
            return _filtered(reader, view, filters, task, task.condition)


def _filtered(reader: RowsReader, view: View, filters: Filters, task: ListTask, condition: Condition) -> Page:
    matching = filters.restrict(view, condition, reader).live_rids()
    if len(matching) <= SORTED_ROWS_MAX:
        documents = {document_id for document_id, _ in reader.keys(matching.tolist()).values()}
        candidates = iter(sorted(document_id for document_id in documents if document_id > task.after))
    else:
        candidates = _walk(reader, task.after, matching)
    return _page(reader, candidates, filters, task, view.applied)


def _heads(reader: RowsReader, after: str) -> Iterator[str]:
    """Every live document behind `after`. Raises DamagedRowError for a tombstone that may be none."""
    sql = "SELECT document, hlc, src, n, sum FROM heads WHERE document > ? ORDER BY document LIMIT ?"
    while found := reader.database.rows(sql, (after, DOCUMENTS_PER_READ)):
        for document_id, hlc, source, passages, checksum in found:
            if passages:
                yield document_id  # whoever reads the document checks its head
            else:
                head = HeadRow(document_id, 0, schema.version_of(hlc, source))
                if schema.head_sum(head) != checksum:
                    raise DamagedRowError([RowName(document_id, -1, head.version)])
        after = found[-1][0]


def _walk(reader: RowsReader, after: str, matching: np.ndarray[tuple[int], np.dtype[np.int64]]) -> Iterator[str]:
    """Documents behind `after` with a row among `matching` (ascending rids), from the index on their names alone."""
    sql = "SELECT document, rid FROM passages WHERE document > ? ORDER BY document, ordinal"
    last = after
    for document_id, rid in reader.database.each(sql, (after,)):
        if document_id == last:
            continue
        place = int(np.searchsorted(matching, rid))
        if place < len(matching) and matching[place] == rid:
            last = document_id
            yield document_id


def _page(reader: RowsReader, candidates: Iterator[str], filters: Filters, task: ListTask, applied: GtidSet) -> Page:
    found: list[shard_pb2.ListedDocument] = []
    size = 0
    for document_id in candidates:
        listed = _document(reader, document_id, filters, task)
        if listed is None:
            continue
        if len(found) == task.limit or size >= PAGE_BYTES_MAX:
            return Page(applied, found, more=True)
        found.append(listed)
        size += listed.ByteSize()
    return Page(applied, found, more=False)


def _document(
    reader: RowsReader, document_id: str, filters: Filters, task: ListTask
) -> shard_pb2.ListedDocument | None:
    """The document as it is now; None when it is gone, or does not meet the condition (any more)."""
    head = reader.head(document_id)
    if head is None or not head.passages:
        return None
    rows = reader.live_passages(document_id)
    condition = task.condition
    if not rows or (condition is not None and not any(filters.met_by(row, condition) for row in rows)):
        return None
    return _listed(head, rows, task)


def _listed(head: HeadRow, rows: Sequence[PassageRow], task: ListTask) -> shard_pb2.ListedDocument:
    listed = shard_pb2.ListedDocument(head=head_to_wire(head))
    try:
        first = passage_pb2.Passage.FromString(rows[0].payload)
    except DecodeError:  # checked when it was written, and its checksum holds
        first = passage_pb2.Passage()
    listed.source = first.source
    for key, value in first.metadata.items():
        listed.metadata[key].CopyFrom(value)
    if task.with_passages:
        listed.passages.extend(passage_to_wire(row, with_vector=task.with_vectors) for row in rows)
    return listed
