"""The topology record between its two forms: plain data as it is stored, and the value that decides about changes."""

from __future__ import annotations

from services.quorum.members import ReplicaRef
from services.quorum.shard_record import Membership, ShardRecord, ShardState
from services.runtime import topology
from services.runtime.topology import ProposedMembers, ShardTopology, Voter


def record_from_stored(stored: ShardTopology) -> ShardRecord:
    """Raises ValueError for a record that allows stale quorum reads: its members cannot be changed safely."""
    proposed = stored.proposed
    return ShardRecord(
        stored.epoch,
        ShardState(stored.state.value),
        Membership(_refs(stored.voters), _refs(stored.learners), stored.read_quorum, stored.write_quorum),
        None
        if proposed is None
        else Membership(_refs(proposed.voters), _refs(proposed.learners), proposed.read_quorum, proposed.write_quorum),
        frozenset(stored.dead),
        frozenset(stored.removed),
    )


def record_to_store(record: ShardRecord) -> ShardTopology:
    """Nothing is lost; sets become sorted tuples."""
    members, proposed = record.members, record.proposed
    return ShardTopology(
        record.epoch,
        _voters(members.voters),
        members.read_quorum,
        members.write_quorum,
        topology.ShardState(record.state.value),
        _voters(members.learners),
        None
        if proposed is None
        else ProposedMembers(
            _voters(proposed.voters), _voters(proposed.learners), proposed.read_quorum, proposed.write_quorum
        ),
        tuple(sorted(record.dead)),
        tuple(sorted(record.removed)),
    )


def _refs(replicas: tuple[Voter, ...]) -> tuple[ReplicaRef, ...]:
    return tuple(ReplicaRef(replica.replica_id, replica.node) for replica in replicas)


def _voters(replicas: tuple[ReplicaRef, ...]) -> tuple[Voter, ...]:
    return tuple(Voter(replica.replica_id, replica.node) for replica in replicas)
