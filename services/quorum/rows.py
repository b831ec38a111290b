"""What is written, stored and repaired.

The head row of a document is its only register: last writer wins by version. Passage rows are immutable and named by
(document, ordinal, version); one is live if and only if its version is its document's head's. Replacing a document
therefore is one step on every replica, however many batches its passages travelled in.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b

from services.quorum.clock import Version
from services.quorum.gtid import Gtid, GtidSet


@dataclass(frozen=True, slots=True)
class PassageRow:
    """One passage. `vector`: dim little-endian float16; `payload`: opaque to replication."""

    document_id: str
    ordinal: int
    version: Version
    vector: bytes
    payload: bytes


@dataclass(frozen=True, slots=True)
class HeadRow:
    """Which version of a document is live and how many passages it has; 0 is a tombstone."""

    document_id: str
    passages: int
    version: Version


@dataclass(frozen=True, slots=True, order=True)
class OpKey:
    """A caller's name for its write of one document; `content`: 16 bytes over what the caller asked for."""

    document_id: str
    key: str
    content: bytes


@dataclass(frozen=True, slots=True)
class WriteBatch:
    """One gtid: rows of one version for one shard. `depends`: earlier batches of the documents whose heads it holds."""

    gtid: Gtid
    version: Version
    passages: tuple[PassageRow, ...]
    heads: tuple[HeadRow, ...]
    depends: GtidSet = GtidSet.EMPTY
    keys: tuple[OpKey, ...] = ()
    """Idempotency keys of documents whose heads are in the batch."""

    def document_ids(self) -> tuple[str, ...]:
        """Every document the batch touches, once, in order."""
        names = [row.document_id for row in self.passages]
        names += [head.document_id for head in self.heads]
        return tuple(dict.fromkeys(names))

    def content(self) -> bytes:
        """Sixteen bytes that tell what the batch says, whatever its name: its version, passages and heads, in order."""
        state = blake2b(b"%d,%d" % (self.version.hlc, self.version.source), digest_size=16)
        for row in self.passages:
            name = row.document_id.encode()
            state.update(b"|p%d,%d,%d,%d|" % (len(name), row.ordinal, len(row.vector), len(row.payload)))
            state.update(name + row.vector + row.payload)
        for head in self.heads:
            state.update(b"|h%d|" % head.passages + head.document_id.encode())
        return state.digest()


@dataclass(frozen=True, slots=True)
class Op:
    """What a replica remembers of an applied batch, so that it can repair others and tell a retry from another."""

    gtid: Gtid
    version: Version
    document_ids: tuple[str, ...]
    content: bytes = b""
    """`WriteBatch.content()`; empty when it is not known."""
    keys: tuple[OpKey, ...] = ()


@dataclass(frozen=True, slots=True)
class DocumentState:
    """A document as one replica has it: its head and exactly the passages of the head's version."""

    head: HeadRow
    passages: tuple[PassageRow, ...]


@dataclass(frozen=True, slots=True)
class PullBundle:
    """A self-contained repair: merging all of it entitles the receiver to add `covers` to its applied set."""

    covers: GtidSet
    documents: tuple[DocumentState, ...]
    staged: tuple[PassageRow, ...]
    ops: tuple[Op, ...]
    hlc_max: int
    as_of: GtidSet = GtidSet.EMPTY
    """What the sender had applied when it made the bundle."""
    forgotten: GtidSet = GtidSet.EMPTY
    """What was asked for and cannot be sent any more; in the last bundle of a whole state, all that was forgotten."""
    floor: Version = Version.ZERO
    """In the last bundle of a whole state: the newest version forgotten."""
