"""What is derived from a replica's rows, derived anew: liveness, digest, documents, applied set, clock.

A restart trusts the stored results, which carry checksums; these functions are for what fails them, for a database of
an older format, and for the scrub.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.quorum.gtid import Gtid, GtidSet
from services.quorum.rows import Op
from services.shard import live_bits, schema
from services.shard.damage import RowName
from services.shard.rows_reader import OPS_PER_STEP, RowsReader
from services.shard.store import Database
from services.shard.view import DIGEST_MODULUS


@dataclass(frozen=True, slots=True)
class Sums:
    """Sums over all heads and operations that pass their checksum, and the names of damaged heads."""

    digest: int
    documents: int
    damaged: tuple[RowName, ...]


def sums(reader: RowsReader) -> Sums:
    """Read every head and every operation. Raises StoreError."""
    digest, documents = 0, 0
    damaged: list[RowName] = []
    for head in reader.heads():
        if isinstance(head, RowName):
            damaged.append(head)
            continue
        digest += schema.head_digest(head)
        documents += head.passages > 0
    digest += sum(schema.op_digest(op) for op in reader.ops() if isinstance(op, Op))
    return Sums(digest % DIGEST_MODULUS, documents, tuple(damaged))


def live_rids(database: Database) -> NDArray[np.int64]:
    """The rid of every live passage, ascending, by joining passages with heads. Raises StoreError."""
    found = np.fromiter((row[0] for row in database.each(f"SELECT p.rid {schema.LIVE}")), dtype=np.int64)  # constant
    return np.sort(found)


def rewrite_live(database: Database) -> int:
    """Derive the whole table `live` anew, in the caller's transaction; returns the live rows. Raises StoreError."""
    rids = live_rids(database)
    database.rows("DELETE FROM live")
    chunks = rids // live_bits.CHUNK_ROWS
    for chunk in np.unique(chunks):
        offsets = rids[np.searchsorted(chunks, chunk) : np.searchsorted(chunks, chunk, side="right")]
        live_bits.put(database, int(chunk), live_bits.packed(offsets % live_bits.CHUNK_ROWS))
    return len(rids)


def applied(reader: RowsReader) -> tuple[GtidSet, int]:
    """(the batches whose operation passes its checksum, their highest clock). Raises StoreError.

    Every applied batch has left an operation, in the same transaction.
    """
    spans: dict[int, list[tuple[int, int]]] = {}
    hlc_max = 0
    for op in reader.ops():
        if isinstance(op, Gtid):
            continue
        hlc_max = max(hlc_max, op.version.hlc)
        of_source = spans.setdefault(op.gtid.source, [])
        if of_source and of_source[-1][1] + 1 == op.gtid.seq:
            of_source[-1] = (of_source[-1][0], op.gtid.seq)
        else:
            of_source.append((op.gtid.seq, op.gtid.seq))
    return GtidSet.from_intervals(spans), hlc_max


def rewrite_applied(database: Database, found: GtidSet) -> None:
    """Store an applied set in place of the stored one, in the caller's transaction. Raises StoreError."""
    database.rows("DELETE FROM applied")
    database.many("INSERT INTO applied (src, lo, hi) VALUES (?, ?, ?)", list(_intervals(found)))


def _intervals(found: GtidSet) -> Iterator[tuple[int, int, int]]:
    for source, spans in found.intervals().items():
        for low, high in spans:
            yield schema.to_sql(source), schema.to_sql(low), schema.to_sql(high)


def sign_ops(reader: RowsReader) -> None:
    """Give every operation of an older format its checksum, in the caller's transaction. Raises StoreError."""
    after = (-(1 << 63), -(1 << 63))
    while True:
        rows = reader.database.rows(
            "SELECT src, seq, hlc, version_src, documents, content FROM ops WHERE (src, seq) > (?, ?)"
            " ORDER BY src, seq LIMIT ?",
            (*after, OPS_PER_STEP),
        )
        if not rows:
            return
        signed = [(schema.op_sum(schema.op_of(row)), row[0], row[1]) for row in rows]
        reader.database.many("UPDATE ops SET sum = ? WHERE src = ? AND seq = ?", signed)
        after = (rows[-1][0], rows[-1][1])
