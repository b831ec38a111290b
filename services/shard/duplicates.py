"""A gtid names one batch for ever, and a version one content of a document.

The same name with other content is a defect of the sender, not a retry, and is refused.

A retry of an uncertain write has the version of its first attempt but a gtid of its own, and texts that are embedded
anew may come out different in the last bits. So vectors that differ only by rounding count as the same content; which
of them is stored is decided by `RowsWriter.put_passages`, alike on every replica.
"""

from __future__ import annotations

import numpy as np

from services.quorum.rows import PassageRow, WriteBatch
from services.shard import schema
from services.shard.rows_reader import RowsReader, passage_of

COSINE_MIN = 0.999
"""Between two embeddings of one text; another text in its place is far below."""


def conflicts(reader: RowsReader, batch: WriteBatch) -> bool:
    """Whether rows of the batch's version are stored with other content, as far as they were not superseded and do
    not fail their checksum. Raises DamagedRowError for a head, StoreError."""
    if not reader.has_version(batch.version):
        return False
    for head in batch.heads:
        stored = reader.head(head.document_id)
        if stored is not None and stored.version == head.version and stored.passages != head.passages:
            return True
    return any(_differs(reader, row) for row in batch.passages)


def _differs(reader: RowsReader, row: PassageRow) -> bool:
    key = (row.document_id, row.ordinal, schema.to_sql(row.version.hlc), schema.to_sql(row.version.source))
    found = reader.database.first(
        "SELECT document, ordinal, hlc, src, vec, payload, sum FROM passages"
        " WHERE document = ? AND ordinal = ? AND hlc = ? AND src = ?",
        key,
    )
    stored = None if found is None else passage_of(found)
    if not isinstance(stored, PassageRow):
        return False
    return stored.payload != row.payload or not _close(stored.vector, row.vector)


def _close(one: bytes, other: bytes) -> bool:
    if one == other:
        return True
    if len(one) != len(other):
        return False
    a, b = (np.frombuffer(vector, dtype="<f2").astype(np.float64) for vector in (one, other))
    return bool(a @ b >= COSINE_MIN * np.linalg.norm(a) * np.linalg.norm(b))
