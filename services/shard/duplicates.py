"""A gtid names one batch for ever: the same name with other content is a defect of the sender, not a retry."""

from __future__ import annotations

from services.quorum.rows import WriteBatch
from services.shard import schema
from services.shard.readers import Readers
from services.shard.rows_reader import RowsReader


def differs_from_stored(readers: Readers, batch: WriteBatch) -> bool:
    """Whether an applied batch of this gtid had another version, other documents or other rows, as far as rows
    that were not superseded still tell. Raises StoreError."""
    with readers.lend() as reader:
        op = reader.op(batch.gtid)
        if op is None:
            return False
        if op.version != batch.version or set(batch.document_ids()) != set(op.document_ids):
            return True
        return _rows_differ(reader, batch)


def _rows_differ(reader: RowsReader, batch: WriteBatch) -> bool:
    version = (schema.to_sql(batch.version.hlc), schema.to_sql(batch.version.source))
    for row in batch.passages:
        stored = reader.database.first(
            "SELECT sum FROM passages WHERE (document, ordinal, hlc, src) = (?, ?, ?, ?)",
            (row.document_id, row.ordinal, *version),
        )
        own = schema.passage_sum(row.document_id, row.ordinal, row.version, row.vector, row.payload)
        if stored is not None and stored[0] != own:
            return True
    for head in batch.heads:
        stored = reader.database.first(
            "SELECT n FROM heads WHERE document = ? AND (hlc, src) = (?, ?)", (head.document_id, *version)
        )
        if stored is not None and stored[0] != head.passages:
            return True
    return False
