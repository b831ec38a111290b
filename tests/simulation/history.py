"""What clients saw: the only thing the checker judges by."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from zlib import crc32

from services.quorum.clock import Version


class Level(Enum):
    """What a search promises."""

    LINEARIZABLE = "LINEARIZABLE"
    """Lookups of one document only."""
    QUORUM = "QUORUM"
    SESSION = "SESSION"
    ONE = "ONE"


def content_of(document_id: str, ordinal: int, text: str) -> bytes:
    """Four bytes that stand for a passage's vector and text."""
    return crc32(f"{document_id}#{ordinal}={text}".encode()).to_bytes(4, "little")


def score(query: int, content: bytes) -> int:
    """How well a passage answers a query: pure, the higher the better."""
    return ((int.from_bytes(content, "little") ^ query) * 2_654_435_761) & 0xFFFF_FFFF


@dataclass(slots=True)
class Write:
    """One version of one document, with all its attempts. No contents: a delete."""

    document_id: str
    contents: tuple[bytes, ...]
    session: int
    invoked_us: int
    version: Version | None = None
    acked_us: int | None = None


@dataclass(frozen=True, slots=True)
class Hit:
    """One passage found."""

    document_id: str
    ordinal: int
    version: Version
    content: bytes


@dataclass(frozen=True, slots=True)
class Search:
    """One completed search, or the lookup of one document."""

    level: Level
    session: int
    query: int
    k: int
    invoked_us: int
    returned_us: int
    hits: tuple[Hit, ...]
    only: str | None = None
    """The document that was looked up; None: all were searched."""


LiveState = frozenset[tuple[str, Version, tuple[bytes, ...]]]


@dataclass(frozen=True, slots=True)
class FinalReplica:
    """A voter after everything healed: its applied set's digest, every head's version, and what is live."""

    name: str
    applied: bytes
    heads: dict[str, Version]
    live: LiveState
    floor: Version = Version.ZERO
    """The newest version that it has forgotten: a tombstone as old may be gone."""


@dataclass(slots=True)
class History:
    """Everything that is judged."""

    writes: list[Write] = field(default_factory=list)
    searches: list[Search] = field(default_factory=list)
    final: list[FinalReplica] = field(default_factory=list)
    changes: int = 0
    """How often the members changed."""
    frozen: bool = False
    """Whether the shard still waits for new members, although everything had healed."""
    views: dict[bytes, dict[LiveState, str]] = field(default_factory=dict)
    """Digest of an applied set -> every live state some replica published with it, and the first replica to do so."""


@dataclass(frozen=True, slots=True)
class Violation:
    """A broken promise."""

    check: str
    text: str
