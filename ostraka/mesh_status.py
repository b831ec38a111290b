"""What a mesh says of itself: nodes with their replicas, services, collections."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ostraka.results import EmbeddingModel
from ostraka.v1 import passage_pb2 as passage_pb
from ostraka.v1 import router_pb2 as router_pb
from ostraka.v1 import shard_pb2 as shard_pb


@dataclass(frozen=True, slots=True)
class SegmentState:
    """One immutable part of a replica's index."""

    name: str
    index_kind: str
    rows: int
    rows_live: int
    bytes: int
    codec: str
    """Short name of the codec its rows are encoded with."""
    list_imbalance: float
    """Mean squared list length over squared mean; 1 is even, 0 unknown."""
    recall: float
    """Measured when it was built."""

    @classmethod
    def from_proto(cls, s: shard_pb.SegmentStatus) -> SegmentState:
        return cls(s.name, s.index_kind, s.rows, s.rows_live, s.bytes, s.codec, s.list_imbalance, s.recall)


@dataclass(frozen=True, slots=True)
class MemoryPart:
    """What a part of a replica costs."""

    part: str
    bytes: int
    mapped: bool
    """Backed by a file: given back under pressure."""


@dataclass(frozen=True, slots=True)
class IndexHealth:
    """What a replica measures about itself; zeros where nothing was measured yet."""

    recall_canary: float
    """Mean recall@k of live queries run again exactly, over `canary_queries`."""
    canary_queries: int
    canary_age_ms: int
    quantization_error: float
    """Mean squared residual of recent rows."""
    quantization_error_basis: float
    """The same when the codec was trained."""
    codec_generation: int
    codec_factory: str
    codec_rows: int
    """Live rows of the collection when the codec was trained."""
    scrubbed_age_ms: int
    """Since the last complete check of rows and files."""
    damage_found: int
    """Rows and files found damaged since the start."""
    builds: int
    """Segments built since the start."""
    building: str
    """What is being built now."""

    @property
    def drift(self) -> float:
        """Quantisation error of recent rows over that at training; 0 while unknown."""
        return self.quantization_error / self.quantization_error_basis if self.quantization_error_basis else 0.0

    @classmethod
    def from_proto(cls, h: shard_pb.IndexHealth) -> IndexHealth:
        return cls(
            recall_canary=h.recall_canary,
            canary_queries=h.canary_queries,
            canary_age_ms=h.canary_age_ms,
            quantization_error=h.quantization_error,
            quantization_error_basis=h.quantization_error_basis,
            codec_generation=h.codec.generation,
            codec_factory=h.codec.factory,
            codec_rows=h.codec.basis_rows,
            scrubbed_age_ms=h.scrubbed_age_ms,
            damage_found=h.damage_found,
            builds=h.builds,
            building=h.building,
        )


@dataclass(frozen=True, slots=True)
class ReplicaState:
    """One replica as its node sees it."""

    collection: str
    shard: int
    replica: str
    state: str
    applied: Mapping[int, tuple[tuple[int, int], ...]]
    """Write batches applied: source -> inclusive intervals; equal on replicas that agree."""
    index_epoch: str
    rows_live: int
    rows_dead: int
    documents_live: int
    delta_rows: int
    segments: tuple[SegmentState, ...]
    digest: bytes
    message: str
    memory: tuple[MemoryPart, ...]
    health: IndexHealth
    lexical_statistics_age_ms: int
    epoch: int
    """Of the members that the replica knows."""
    learner: bool
    """Without a vote."""
    frozen: bool
    """Quorum operations wait for the end of a change of members."""

    @property
    def memory_bytes(self) -> int:
        """What the replica holds itself, without what is mapped from files."""
        return sum(part.bytes for part in self.memory if not part.mapped)

    @property
    def batches_applied(self) -> int:
        return sum(last - first + 1 for spans in self.applied.values() for first, last in spans)

    @classmethod
    def from_proto(cls, r: shard_pb.ReplicaState) -> ReplicaState:
        return cls(
            collection=r.collection,
            shard=r.shard,
            replica=r.replica,
            state=r.state,
            applied=_intervals(r.applied),
            index_epoch=r.index_epoch,
            rows_live=r.rows_live,
            rows_dead=r.rows_dead,
            documents_live=r.documents_live,
            delta_rows=r.delta_rows,
            segments=tuple(map(SegmentState.from_proto, r.segments)),
            digest=r.digest,
            message=r.message,
            memory=tuple(MemoryPart(part.part, part.bytes, part.mapped) for part in r.memory),
            health=IndexHealth.from_proto(r.health),
            lexical_statistics_age_ms=r.lexical_statistics_age_ms,
            epoch=r.epoch,
            learner=r.learner,
            frozen=r.frozen,
        )


@dataclass(frozen=True, slots=True)
class NodeState:
    """One shard node as the router reaches it; without replicas when it does not answer."""

    node: str
    address: str
    reachable: bool
    error: str
    replicas: tuple[ReplicaState, ...]
    resident_bytes: int


@dataclass(frozen=True, slots=True)
class ServiceState:
    """One stateless server."""

    service: str
    address: str
    serving: bool
    error: str


@dataclass(frozen=True, slots=True)
class CollectionState:
    """One collection as configured."""

    collection: str
    shards: int
    replicas: int
    read_quorum: int
    write_quorum: int
    embedding_model: EmbeddingModel
    dim: int


@dataclass(frozen=True, slots=True)
class MeshStatus:
    """The whole mesh through one router."""

    nodes: tuple[NodeState, ...]
    services: tuple[ServiceState, ...]
    collections: tuple[CollectionState, ...]
    version: str

    def replicas(self, collection: str, shard: int) -> tuple[ReplicaState, ...]:
        """Every reachable replica of one shard."""
        return tuple(
            replica
            for node in self.nodes
            for replica in node.replicas
            if (replica.collection, replica.shard) == (collection, shard)
        )

    def converged(self, collection: str) -> bool:
        """Every node is reachable and all replicas of each shard, learners too, have applied the same write batches."""
        view = next((c for c in self.collections if c.collection == collection), None)
        if view is None or not all(node.reachable for node in self.nodes):
            return False
        for shard in range(view.shards):
            replicas = self.replicas(collection, shard)
            voters = sum(not replica.learner for replica in replicas)
            if voters != view.replicas or any(r.applied != replicas[0].applied for r in replicas):
                return False
        return True

    @classmethod
    def from_proto(cls, s: router_pb.StatusResponse) -> MeshStatus:
        return cls(
            nodes=tuple(
                NodeState(
                    n.node,
                    n.address,
                    n.reachable,
                    n.error,
                    tuple(map(ReplicaState.from_proto, n.status.replicas)),
                    n.status.resident_bytes,
                )
                for n in s.nodes
            ),
            services=tuple(ServiceState(v.service, v.address, v.serving, v.error) for v in s.services),
            collections=tuple(
                CollectionState(
                    c.collection,
                    c.shards,
                    c.replicas,
                    c.read_quorum,
                    c.write_quorum,
                    EmbeddingModel(c.embedding_model.id, c.embedding_model.revision),
                    c.dim,
                )
                for c in s.collections
            ),
            version=s.version,
        )


def _intervals(applied: passage_pb.GtidSet) -> dict[int, tuple[tuple[int, int], ...]]:
    return {
        source.source: tuple(zip(source.bounds[::2], source.bounds[1::2], strict=False)) for source in applied.sources
    }
