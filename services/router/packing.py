"""Documents of one shard into write batches. Pure.

A batch is one gtid: at most `rows_max` rows, heads counted, and about `bytes_max` bytes. Small documents
share a batch. A document that needs more than one batch travels as several parcels of one version whose
last carries the head and depends on the others, so that it replaces its predecessor in one step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

# Tags, lengths, ordinal and version around a row's variable parts in protobuf; generous.
ROW_OVERHEAD_BYTES = 64


@dataclass(frozen=True, slots=True)
class Row:
    """One passage to store. `vector` is float16 bytes, `payload` a serialized Passage."""

    ordinal: int
    vector: bytes
    payload: bytes


@dataclass(frozen=True, slots=True)
class Document:
    """All rows of one document; none means a tombstone."""

    document_id: str
    rows: tuple[Row, ...]


@dataclass(slots=True)
class Parcel:
    """What one gtid will carry: passages, the heads of the documents that it completes, and the parcels
    (positions in the list it came in) that must be acknowledged before it is sent."""

    passages: list[tuple[str, Row]] = field(default_factory=list)
    heads: list[tuple[str, int]] = field(default_factory=list)
    depends: tuple[int, ...] = ()
    size: int = 0

    @property
    def rows(self) -> int:
        return len(self.passages) + len(self.heads)


def row_bytes(document_id: str, row: Row) -> int:
    """About how many bytes the row takes in a message."""
    return len(row.payload) + len(row.vector) + len(document_id.encode()) + ROW_OVERHEAD_BYTES


def head_bytes(document_id: str) -> int:
    """About how many bytes the head takes in a message."""
    return len(document_id.encode()) + ROW_OVERHEAD_BYTES


def pack(documents: Sequence[Document], rows_max: int, bytes_max: int) -> list[Parcel]:
    """Parcels in an order in which `depends` only points backwards.

    A row larger than `bytes_max` gets a parcel of its own: refusing it is the caller's business, before.
    """
    parcels: list[Parcel] = []
    shared: Parcel | None = None
    for document in documents:
        sizes = [row_bytes(document.document_id, row) for row in document.rows]
        total = sum(sizes) + head_bytes(document.document_id)
        if len(document.rows) + 1 > rows_max or total > bytes_max:
            parcels.extend(_split(document, sizes, rows_max, bytes_max, first=len(parcels)))
            continue
        if shared is None or shared.rows + len(document.rows) + 1 > rows_max or shared.size + total > bytes_max:
            shared = Parcel()
            parcels.append(shared)
        shared.passages.extend((document.document_id, row) for row in document.rows)
        shared.heads.append((document.document_id, len(document.rows)))
        shared.size += total
    return parcels


def _split(document: Document, sizes: Sequence[int], rows_max: int, bytes_max: int, first: int) -> list[Parcel]:
    """One large document alone: passages first, the head in the last parcel."""
    parcels = [Parcel()]
    for row, size in zip(document.rows, sizes, strict=True):
        current = parcels[-1]
        if current.passages and (current.rows + 1 > rows_max or current.size + size > bytes_max):
            current = Parcel()
            parcels.append(current)
        current.passages.append((document.document_id, row))
        current.size += size
    head = head_bytes(document.document_id)
    if parcels[-1].rows + 1 > rows_max or parcels[-1].size + head > bytes_max:
        parcels.append(Parcel())
    last = parcels[-1]
    last.heads.append((document.document_id, len(document.rows)))
    last.size += head
    last.depends = tuple(range(first, first + len(parcels) - 1))
    return parcels
