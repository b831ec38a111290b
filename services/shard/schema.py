"""Tables of a replica, and how numbers and rows are coded in them.

SQLite's integers are signed: a 64-bit unsigned number is stored minus 2**63, which keeps the order of versions in SQL
equal to their order in the protocol. Every passage, head and operation carries a BLAKE2b-8 checksum over its key and
content, since SQLite's pages carry none. Format 1 had neither the table `live` nor the content of operations.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, Final

from services.quorum.clock import Version
from services.quorum.gtid import Gtid
from services.quorum.rows import HeadRow, Op

FORMAT: Final = 2
_BIAS: Final = 1 << 63

TABLES: Final = (
    """CREATE TABLE IF NOT EXISTS meta (k TEXT PRIMARY KEY, v) WITHOUT ROWID""",
    """CREATE TABLE IF NOT EXISTS heads (
        document TEXT PRIMARY KEY, hlc INTEGER NOT NULL, src INTEGER NOT NULL, n INTEGER NOT NULL, sum BLOB NOT NULL
    ) WITHOUT ROWID""",
    """CREATE TABLE IF NOT EXISTS passages (
        rid INTEGER PRIMARY KEY AUTOINCREMENT, document TEXT NOT NULL, ordinal INTEGER NOT NULL,
        hlc INTEGER NOT NULL, src INTEGER NOT NULL, vec BLOB NOT NULL, payload BLOB NOT NULL, sum BLOB NOT NULL,
        superseded_ms INTEGER, UNIQUE (document, ordinal, hlc, src)
    )""",
    """CREATE INDEX IF NOT EXISTS passages_superseded ON passages (superseded_ms) WHERE superseded_ms IS NOT NULL""",
    """CREATE TABLE IF NOT EXISTS ops (
        src INTEGER NOT NULL, seq INTEGER NOT NULL, hlc INTEGER NOT NULL, version_src INTEGER NOT NULL,
        documents TEXT NOT NULL, content BLOB NOT NULL DEFAULT x'', sum BLOB NOT NULL DEFAULT x'',
        PRIMARY KEY (src, seq)
    ) WITHOUT ROWID""",
    """CREATE INDEX IF NOT EXISTS ops_version ON ops (hlc, version_src)""",
    """CREATE TABLE IF NOT EXISTS op_keys (
        document TEXT NOT NULL, key TEXT NOT NULL, content BLOB NOT NULL, src INTEGER NOT NULL, seq INTEGER NOT NULL,
        hlc INTEGER NOT NULL, version_src INTEGER NOT NULL, sum BLOB NOT NULL, PRIMARY KEY (src, seq, document)
    ) WITHOUT ROWID""",
    """CREATE INDEX IF NOT EXISTS op_keys_key ON op_keys (document, key)""",
    """CREATE TABLE IF NOT EXISTS applied (
        src INTEGER NOT NULL, lo INTEGER NOT NULL, hi INTEGER NOT NULL, PRIMARY KEY (src, lo)
    ) WITHOUT ROWID""",
    """CREATE TABLE IF NOT EXISTS segments (name TEXT PRIMARY KEY, sha256 TEXT NOT NULL) WITHOUT ROWID""",
    """CREATE TABLE IF NOT EXISTS live (chunk INTEGER PRIMARY KEY, bits BLOB NOT NULL, sum BLOB NOT NULL)""",
)

LIVE: Final = """FROM passages p JOIN heads h
    ON h.document = p.document AND h.hlc = p.hlc AND h.src = p.src AND p.ordinal < h.n"""


def to_sql(number: int) -> int:
    """An unsigned 64-bit number as SQLite stores it, order kept."""
    assert 0 <= number < 1 << 64, "64-bit unsigned"
    return number - _BIAS


def from_sql(number: int) -> int:
    return number + _BIAS


def version_of(hlc: int, source: int) -> Version:
    """A version from its two columns."""
    return Version(from_sql(hlc), from_sql(source))


def op_of(row: tuple[Any, ...]) -> Op:
    """The operation of (src, seq, hlc, version_src, documents, content, ...). Raises TypeError, ValueError."""
    gtid = Gtid(from_sql(row[0]), from_sql(row[1]))
    return Op(gtid, version_of(row[2], row[3]), documents_from_sql(row[4]), bytes(row[5]))


def documents_to_sql(document_ids: tuple[str, ...]) -> str:
    return json.dumps(document_ids, ensure_ascii=False, separators=(",", ":"))


def documents_from_sql(text: str) -> tuple[str, ...]:
    return tuple(json.loads(text))


def passage_sum(document_id: str, ordinal: int, version: Version, vector: bytes, payload: bytes) -> bytes:
    """Checksum of a passage row: 8 bytes over key, version, vector and payload."""
    name = document_id.encode()
    head = f"{len(name)},{ordinal},{version.hlc},{version.source},{len(vector)}|".encode()
    return hashlib.blake2b(head + name + vector + payload, digest_size=8).digest()


def is_passage_sum(
    checksum: object, document_id: str, ordinal: int, version: Version, vector: object, payload: object
) -> bool:
    """Whether a stored passage is what was written; a flipped bit may have changed a column's type."""
    if not isinstance(vector, bytes) or not isinstance(payload, bytes):
        return False
    return passage_sum(document_id, ordinal, version, vector, payload) == checksum


def head_sum(head: HeadRow) -> bytes:
    """Checksum of a head row: 8 bytes over document, version and count."""
    text = f"{head.passages},{head.version.hlc},{head.version.source}|{head.document_id}"
    return hashlib.blake2b(text.encode(), digest_size=8).digest()


def op_sum(op: Op) -> bytes:
    """Checksum of an operation: 8 bytes over gtid, version, documents and content."""
    head = f"{op.gtid.source},{op.gtid.seq},{op.version.hlc},{op.version.source},{len(op.content)}|".encode()
    return hashlib.blake2b(head + op.content + documents_to_sql(op.document_ids).encode(), digest_size=8).digest()


def head_digest(head: HeadRow) -> int:
    """A live head's term in the replica's digest, 128 bits; 0 for a tombstone, which is not live."""
    if not head.passages:
        return 0
    text = f"{head.passages},{head.version.hlc},{head.version.source}|{head.document_id}"
    key = b"ostraka-digest-1"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16, key=key).digest(), "big")


def op_digest(op: Op) -> int:
    """An applied batch's term in the replica's digest, 128 bits; 0 when it is not known what the batch said.

    With it two replicas that took different batches under one gtid have different digests, whatever became of the rows.
    """
    if not op.content:
        return 0
    text = f"{op.gtid.source},{op.gtid.seq}|".encode() + op.content
    return int.from_bytes(hashlib.blake2b(text, digest_size=16, key=b"ostraka-digest-2").digest(), "big")
