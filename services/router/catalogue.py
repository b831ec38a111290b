"""What the coordinator knows of each collection: its shards, their voters, its model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from services.quorum.buckets import bucket_of
from services.quorum.members import Members, ReplicaRef
from services.runtime.config import Config, MetadataKind
from services.runtime.errors import NotFound
from services.runtime.topology import CollectionTopology, ShardState, ShardTopology, Topology, Voter


@dataclass(frozen=True, slots=True)
class Model:
    """An embedding model: id and revision ("" when nobody named one)."""

    id: str
    revision: str = ""


@dataclass(frozen=True, slots=True)
class Collection:
    """One collection of the mesh file, with its part of the topology."""

    name: str
    dim: int
    model: Model
    members: Mapping[int, Members]
    """Voters and quorum sizes per shard."""
    buckets: Sequence[int]
    """Bucket to shard."""
    weak: bool = False
    """R + W <= N was allowed: QUORUM promises nothing."""
    metadata: Mapping[str, MetadataKind] = field(default_factory=dict)
    """Declared metadata: what filters may name, beside the built-in fields."""
    learners: Mapping[int, tuple[ReplicaRef, ...]] = field(default_factory=dict)
    """Replicas per shard that may be searched and have no vote."""
    frozen: frozenset[int] = frozenset()
    """Shards whose members are being changed: their quorum operations wait."""
    nodes: tuple[str, ...] = field(init=False)
    """Every node that votes for some shard."""
    replica_of: Mapping[tuple[int, str], str] = field(init=False)
    """(shard, node) to the replica id expected there."""

    def __post_init__(self) -> None:
        found = {
            (shard, voter.node): voter.replica_id for shard, members in self.members.items() for voter in members.voters
        }
        object.__setattr__(self, "replica_of", found)
        object.__setattr__(self, "nodes", tuple(dict.fromkeys(node for _, node in found)))

    @property
    def shards(self) -> tuple[int, ...]:
        return tuple(self.members)

    def newer_than(self, other: Collection) -> bool:
        """Whether some shard is in a later epoch here."""
        return any(found.epoch > other.members[shard].epoch for shard, found in self.members.items())

    def shard_of(self, document_id: str) -> int:
        """The shard that holds a document."""
        return self.buckets[bucket_of(document_id)]


class Catalogue:
    """Every collection by name."""

    def __init__(self, collections: Mapping[str, Collection]) -> None:
        self._collections = dict(collections)

    def __iter__(self) -> Iterator[Collection]:
        return iter(self._collections.values())

    @classmethod
    def of(cls, config: Config, topology: Topology) -> Catalogue:
        """What the mesh file and the topology record say together."""
        return cls({name: _collection(config, name, record) for name, record in topology.collections.items()})

    def update(self, topology: Topology) -> bool:
        """Take up a record; whether anything is new. Epochs never go back: a shard's older record is passed over."""
        changed = False
        for name, record in topology.collections.items():
            known = self._collections.get(name)
            if known is None:
                continue
            shards = {shard: record.shards[shard] for shard in known.shards if shard in record.shards}
            fresh = {shard for shard, found in shards.items() if found.epoch > known.members[shard].epoch}
            if fresh:
                self._collections[name] = _renewed(known, {shard: shards[shard] for shard in fresh})
                changed = True
        return changed

    def get(self, name: str) -> Collection:
        """Raise NotFound naming the field `collection`."""
        found = self._collections.get(name)
        if found is None:
            known = ", ".join(sorted(self._collections)) or "none"
            raise NotFound(
                f"collection {name[:80]!r} is not declared in the mesh file; declared: {known}", "collection"
            )
        return found


def _collection(config: Config, name: str, record: CollectionTopology) -> Collection:
    settings = config.collections[name]
    members = {shard: _members(found) for shard, found in record.shards.items()}
    weak = not all(found.intersecting for found in members.values())
    model = Model(settings.embedding_model, settings.embedding_revision)
    return Collection(
        name,
        settings.dim,
        model,
        members,
        record.buckets,
        weak,
        settings.metadata,
        {shard: _refs(found.learners) for shard, found in record.shards.items()},
        frozenset(shard for shard, found in record.shards.items() if found.state is ShardState.FROZEN),
    )


def _renewed(known: Collection, shards: Mapping[int, ShardTopology]) -> Collection:
    members = {**known.members, **{shard: _members(found) for shard, found in shards.items()}}
    thawed = {shard for shard, found in shards.items() if found.state is not ShardState.FROZEN}
    return replace(
        known,
        members=members,
        weak=not all(found.intersecting for found in members.values()),
        learners={**known.learners, **{shard: _refs(found.learners) for shard, found in shards.items()}},
        frozen=(known.frozen | shards.keys()) - thawed,
    )


def _members(record: ShardTopology) -> Members:
    return Members(record.epoch, _refs(record.voters), record.read_quorum, record.write_quorum)


def _refs(replicas: Sequence[Voter]) -> tuple[ReplicaRef, ...]:
    return tuple(ReplicaRef(replica.replica_id, replica.node) for replica in replicas)
