"""Idempotency keys of applied batches: which caller's write a batch carried, stored beside the batch's operation.

A row belongs to its operation: it is written in the same transaction, travels with it in pulls, and lives as long.
"""

from __future__ import annotations

import hashlib
from typing import Any

from services.quorum.clock import Version
from services.quorum.gtid import Gtid
from services.quorum.rows import Op, OpKey
from services.shard import schema
from services.shard.store import Database

_FROM = "SELECT document, key, content, src, seq, hlc, version_src, sum FROM op_keys"
_INTO = "INTO op_keys (document, key, content, src, seq, hlc, version_src, sum) VALUES (?, ?, ?, ?, ?, ?, ?, ?)"


class KeyDamagedError(Exception):
    """A stored key fails its checksum; `gtid` as it stands, None when that makes no sense either."""

    def __init__(self, gtid: Gtid | None) -> None:
        self.gtid = gtid
        super().__init__("an idempotency key fails its checksum")


def put(database: Database, op: Op) -> None:
    """Remember the keys of an operation; idempotent. Raises StoreError."""
    gtid = (schema.to_sql(op.gtid.source), schema.to_sql(op.gtid.seq))
    version = (schema.to_sql(op.version.hlc), schema.to_sql(op.version.source))
    # First, so that a damaged row does not stay beside the one that mends it.
    database.rows("DELETE FROM op_keys WHERE src = ? AND seq = ?", gtid)
    database.many(
        f"INSERT {_INTO}",
        [(key.document_id, key.key, key.content, *gtid, *version, _sum(key, op.gtid, op.version)) for key in op.keys],
    )


def of(database: Database, gtid: Gtid) -> tuple[OpKey, ...]:
    """The keys that a batch carried. Raises KeyDamagedError, StoreError."""
    rows = database.rows(
        f"{_FROM} WHERE src = ? AND seq = ? ORDER BY document",
        (schema.to_sql(gtid.source), schema.to_sql(gtid.seq)),
    )
    return tuple(_checked(row)[0] for row in rows)


def find(database: Database, document_id: str, key: str) -> list[tuple[OpKey, Gtid, Version]]:
    """Every batch that wrote this document under this key. Raises KeyDamagedError, StoreError."""
    rows = database.rows(f"{_FROM} WHERE document = ? AND key = ?", (document_id, key))
    return [_checked(row) for row in rows]


def _checked(row: tuple[Any, ...]) -> tuple[OpKey, Gtid, Version]:
    document_id, key, content, source, seq, hlc, version_source, checksum = row
    if not all(isinstance(number, int) for number in (source, seq, hlc, version_source)):
        raise KeyDamagedError(None)
    gtid, version = Gtid(schema.from_sql(source), schema.from_sql(seq)), schema.version_of(hlc, version_source)
    if not isinstance(document_id, str) or not isinstance(key, str) or not isinstance(content, bytes):
        raise KeyDamagedError(gtid)
    found = OpKey(document_id, key, content)
    if _sum(found, gtid, version) != checksum:
        raise KeyDamagedError(gtid)
    return found, gtid, version


def _sum(key: OpKey, gtid: Gtid, version: Version) -> bytes:
    """Checksum of a row: 8 bytes over everything in it."""
    document, name = key.document_id.encode(), key.key.encode()
    head = f"{gtid.source},{gtid.seq},{version.hlc},{version.source},{len(document)},{len(name)}|"
    return hashlib.blake2b(head.encode() + document + name + key.content, digest_size=8).digest()
