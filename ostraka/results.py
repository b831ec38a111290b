"""What a mesh answers, as frozen values; no protobuf type leaves the client.

`from_proto` stands beside each type. Digests are bytes, positions characters.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ostraka.search_modes import SearchMode
from ostraka.v1 import passage_pb2 as passage_pb
from ostraka.v1 import router_pb2 as router_pb

MetadataScalar: TypeAlias = str | int | float | bool


class Consistency(Enum):
    """How fresh an answer must be; the values are the contract's."""

    ONE = passage_pb.CONSISTENCY_LEVEL_ONE
    """Any one replica; converges."""
    SESSION = passage_pb.CONSISTENCY_LEVEL_SESSION
    """Reads what this client wrote or has read before."""
    QUORUM = passage_pb.CONSISTENCY_LEVEL_QUORUM
    """Every write acknowledged before the call began is visible."""
    BOUNDED = passage_pb.CONSISTENCY_LEVEL_BOUNDED
    """Every write acknowledged more than `max_staleness_ms` before the call began is visible."""
    LINEARIZABLE = passage_pb.CONSISTENCY_LEVEL_LINEARIZABLE
    """`get` only: as QUORUM, and no later read misses what was returned."""

    @classmethod
    def from_proto(cls, value: int) -> Consistency:
        return cls.QUORUM if value == int(passage_pb.CONSISTENCY_LEVEL_UNSPECIFIED) else cls(value)


class WriteLevel(Enum):
    """When a write is acknowledged; the values are the contract's."""

    ONE = passage_pb.WRITE_LEVEL_ONE
    """Durable on one voter: a read at QUORUM may miss it, and it may be lost with that voter's disk."""
    QUORUM = passage_pb.WRITE_LEVEL_QUORUM
    """Durable on a write quorum, visible to every later read at QUORUM."""
    ALL = passage_pb.WRITE_LEVEL_ALL
    """Durable and visible on every voter."""

    @classmethod
    def from_proto(cls, value: int) -> WriteLevel:
        return cls.QUORUM if value == int(passage_pb.WRITE_LEVEL_UNSPECIFIED) else cls(value)


@dataclass(frozen=True, slots=True, order=True)
class Version:
    """A hybrid logical clock reading and the writer that took it; totally ordered."""

    hlc: int
    source: int

    @classmethod
    def from_proto(cls, version: passage_pb.Version) -> Version:
        return cls(version.hlc, version.source)

    def to_proto(self) -> passage_pb.Version:
        return passage_pb.Version(hlc=self.hlc, source=self.source)

    @property
    def unix_ms(self) -> int:
        """Wall-clock part, Unix milliseconds."""
        return self.hlc >> 16

    def __str__(self) -> str:
        return f"{self.hlc:x}.{self.source:x}"


@dataclass(frozen=True, slots=True)
class EmbeddingModel:
    """Which model made the vectors."""

    id: str
    revision: str


@dataclass(frozen=True, slots=True)
class Passage:
    """A passage as it is stored and served."""

    passage_id: str
    document_id: str
    ordinal: int
    title: str
    text: str
    source: str
    char_start: int
    char_end: int
    metadata: Mapping[str, MetadataScalar]
    content_sha256: bytes
    version: Version
    truncated: bool
    vector: NDArray[np.float32] | None

    @classmethod
    def from_proto(cls, p: passage_pb.Passage) -> Passage:
        return cls(
            passage_id=p.passage_id,
            document_id=p.document_id,
            ordinal=p.ordinal,
            title=p.title,
            text=p.text,
            source=p.source,
            char_start=p.char_start,
            char_end=p.char_end,
            metadata={key: scalar_of(value) for key, value in p.metadata.items()},
            content_sha256=p.content_sha256,
            version=Version.from_proto(p.version),
            truncated=p.truncated,
            vector=np.frombuffer(p.vector.data, dtype="<f4").astype(np.float32) if p.vector.data else None,
        )


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where a hit came from and what became of it; equal to what the trace says."""

    passage_id: str
    document_id: str
    source: str
    version: Version
    shard: int
    replica: str
    index_epoch: str
    index_part: str
    index_kind: str
    dense_score: float
    """Cosine similarity; 0 without a dense rank."""
    dense_rank: int
    """From 1, before fusion; 0: not among the nearest."""
    lexical_score: float
    """BM25; 0 without a lexical rank."""
    lexical_rank: int
    """From 1, before fusion; 0: not among the best by words."""
    score: float
    """What `rank` orders by: cosine, BM25, or the fused score."""
    rank: int
    in_prompt: bool
    cited: bool
    content_sha256: bytes
    embedding_model: EmbeddingModel

    @classmethod
    def from_proto(cls, p: passage_pb.Provenance) -> Provenance:
        return cls(
            passage_id=p.passage_id,
            document_id=p.document_id,
            source=p.source,
            version=Version.from_proto(p.version),
            shard=p.shard,
            replica=p.replica,
            index_epoch=p.index_epoch,
            index_part=p.index_part,
            index_kind=p.index_kind,
            dense_score=p.dense_score,
            dense_rank=p.dense_rank,
            lexical_score=p.lexical_score,
            lexical_rank=p.lexical_rank,
            score=p.score,
            rank=p.rank,
            in_prompt=p.in_prompt,
            cited=p.cited,
            content_sha256=p.content_sha256,
            embedding_model=EmbeddingModel(p.embedding_model.id, p.embedding_model.revision),
        )


@dataclass(frozen=True, slots=True)
class Hit:
    """A passage found, and its provenance."""

    passage: Passage
    provenance: Provenance

    @property
    def score(self) -> float:
        """What the hits are ordered by: cosine similarity, BM25, or the fused score."""
        return self.provenance.score

    @classmethod
    def from_proto(cls, hit: passage_pb.Hit) -> Hit:
        return cls(Passage.from_proto(hit.passage), Provenance.from_proto(hit.provenance))


@dataclass(frozen=True, slots=True)
class ShardCoverage:
    """How one shard took part in one reply."""

    shard: int
    complete: bool
    replica: str
    node: str
    index_epoch: str
    rows_live: int
    hedges: int
    retries: int
    voters_answered: int
    level: Consistency
    reason: str
    staleness_ms: int | None = None
    """ONE, SESSION, BOUNDED: everything acknowledged longer ago is in; None: not known."""

    @classmethod
    def from_proto(cls, c: passage_pb.ShardCoverage) -> ShardCoverage:
        return cls(
            shard=c.shard,
            complete=c.state == passage_pb.ShardCoverage.STATE_COMPLETE,
            replica=c.replica,
            node=c.node,
            index_epoch=c.index_epoch,
            rows_live=c.rows_live,
            hedges=c.hedges,
            retries=c.retries,
            voters_answered=c.voters_answered,
            level=Consistency.from_proto(c.level),
            reason=c.reason,
            staleness_ms=c.staleness_ms if c.HasField("staleness_ms") else None,
        )


@dataclass(frozen=True, slots=True)
class SearchResult:
    """The hits of one query, best first, and how the shards took part."""

    hits: tuple[Hit, ...]
    coverage: tuple[ShardCoverage, ...]
    consistency: Consistency
    embedding_model: EmbeddingModel
    trace_id: str
    weak: bool
    """R + W <= N was allowed by configuration: QUORUM promises nothing."""
    mode: SearchMode
    lexical_statistics_age_ms: int
    """Of the oldest corpus statistics that BM25 used; 0 without BM25."""

    @property
    def complete(self) -> bool:
        """Every shard took part at the level asked for."""
        return all(shard.complete for shard in self.coverage)

    def __len__(self) -> int:
        return len(self.hits)

    def __iter__(self) -> Iterator[Hit]:
        return iter(self.hits)


@dataclass(frozen=True, slots=True)
class GetResult:
    """Passages by id; `missing` are ids asked for that do not exist."""

    passages: tuple[Passage, ...]
    missing: tuple[str, ...]
    coverage: tuple[ShardCoverage, ...]
    consistency: Consistency = Consistency.QUORUM
    weak: bool = False
    """R + W <= N was allowed by configuration: QUORUM promises nothing."""


class Outcome(Enum):
    """What became of one document of a write."""

    ACKNOWLEDGED = router_pb.WRITE_OUTCOME_ACKNOWLEDGED
    """What the write's level says; QUORUM: durable on a write quorum and visible to every later quorum read."""
    UNCERTAIN = router_pb.WRITE_OUTCOME_UNCERTAIN
    """May become visible, at `version`."""
    REFUSED = router_pb.WRITE_OUTCOME_REFUSED
    """Nothing will appear."""

    @classmethod
    def from_proto(cls, value: int) -> Outcome:
        # A newer server's outcome that this client does not know promises nothing.
        return next((outcome for outcome in cls if int(outcome.value) == value), cls.UNCERTAIN)


@dataclass(frozen=True, slots=True)
class DocumentWrite:
    """One document's outcome."""

    document_id: str
    outcome: Outcome
    version: Version
    acks: int
    passages: int
    truncated_ordinals: tuple[int, ...]
    shard: int
    reason: str
    repeated_key: bool = False
    """An earlier attempt with this idempotency key was found: this is its outcome."""

    @property
    def acknowledged(self) -> bool:
        """Durable as the write's level says."""
        return self.outcome is Outcome.ACKNOWLEDGED

    @classmethod
    def from_proto(cls, w: router_pb.DocumentWrite) -> DocumentWrite:
        return cls(
            document_id=w.document_id,
            outcome=Outcome.from_proto(w.outcome),
            version=Version.from_proto(w.version),
            acks=w.acks,
            passages=w.passages,
            truncated_ordinals=tuple(w.truncated_ordinals),
            shard=w.shard,
            reason=w.reason,
            repeated_key=w.repeated_key,
        )


@dataclass(frozen=True, slots=True)
class WriteResult:
    """Every document's outcome, in the order of the request."""

    documents: tuple[DocumentWrite, ...]
    trace_id: str
    level: WriteLevel = WriteLevel.QUORUM
    meaning: str = ""
    """What an acknowledgement says at this level, in words."""
    weak: bool = False
    """R + W <= N was allowed by configuration: QUORUM promises nothing."""

    @property
    def acknowledged(self) -> bool:
        """Every document is durable as the level says."""
        return all(document.outcome is Outcome.ACKNOWLEDGED for document in self.documents)

    def having(self, outcome: Outcome) -> tuple[DocumentWrite, ...]:
        """The documents with this outcome."""
        return tuple(document for document in self.documents if document.outcome is outcome)


def scalar_of(value: passage_pb.MetadataValue) -> MetadataScalar:
    """The value itself."""
    kind = value.WhichOneof("kind")
    scalar: MetadataScalar = getattr(value, kind) if kind else ""
    return scalar
