"""What a replica knows about all its rows at once, kept in one checksummed record of the table `meta`.

It is written in every transaction that changes any of it. The digest of the applied set stands in for the table
`applied`, whose rows carry no checksum of their own.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass

from services.shard.store import Database, StoreError

STATE_KEY = "state"
EPOCH_KEY = "epoch"
_LAYOUT = struct.Struct(">16sQQQ8s")
_EPOCH_LAYOUT = struct.Struct(">Q?")


@dataclass(frozen=True, slots=True)
class ReplicaState:
    """Sums over the live rows, the clock, and the digest of the applied set."""

    digest: int = 0
    """Of the live heads and of what the applied batches said, modulo 2**128."""
    documents: int = 0
    """Live documents."""
    rows: int = 0
    """Live passages: bits set in the table `live`."""
    hlc_max: int = 0
    applied: bytes = bytes(8)
    """`GtidSet.digest()` of the applied set."""

    def to_bytes(self) -> bytes:
        body = _LAYOUT.pack(self.digest.to_bytes(16, "big"), self.documents, self.rows, self.hlc_max, self.applied)
        return body + _sum(body)

    @classmethod
    def from_bytes(cls, data: object) -> ReplicaState | None:
        """What `to_bytes` wrote; None when it fails its checksum."""
        if not isinstance(data, bytes) or len(data) != _LAYOUT.size + 8:
            return None
        body = data[: _LAYOUT.size]
        if _sum(body) != data[_LAYOUT.size :]:
            return None
        digest, documents, rows, hlc_max, applied = _LAYOUT.unpack(body)
        return cls(int.from_bytes(digest, "big"), documents, rows, hlc_max, applied)


def read_state(database: Database) -> ReplicaState | None:
    """The stored state; None when it is missing or fails its checksum. Raises StoreError."""
    row = database.first("SELECT v FROM meta WHERE k = ?", (STATE_KEY,))
    return None if row is None else ReplicaState.from_bytes(row[0])


def write_state(database: Database, state: ReplicaState) -> None:
    """Store the state, in the caller's transaction. Raises StoreError."""
    database.rows("INSERT OR REPLACE INTO meta (k, v) VALUES (?, ?)", (STATE_KEY, state.to_bytes()))


def read_epoch(database: Database) -> tuple[int, bool]:
    """The epoch this replica was fenced at or has read, and whether it is frozen; (0, False) if neither ever happened.

    Raises StoreError when it fails its checksum: a replica that forgot a fence could acknowledge what nobody reads.
    """
    row = database.first("SELECT v FROM meta WHERE k = ?", (EPOCH_KEY,))
    if row is None:
        return 0, False
    data = row[0]
    if not isinstance(data, bytes) or data[_EPOCH_LAYOUT.size :] != _sum(data[: _EPOCH_LAYOUT.size]):
        raise StoreError("the stored epoch fails its checksum; replace this replica under a new id")
    epoch, frozen = _EPOCH_LAYOUT.unpack(data[: _EPOCH_LAYOUT.size])
    return int(epoch), bool(frozen)


def write_epoch(database: Database, epoch: int, frozen: bool) -> None:
    """Store the epoch, in the caller's transaction. Raises StoreError."""
    body = _EPOCH_LAYOUT.pack(epoch, frozen)
    database.rows("INSERT OR REPLACE INTO meta (k, v) VALUES (?, ?)", (EPOCH_KEY, body + _sum(body)))


def _sum(body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=8, person=b"ostraka-state").digest()
