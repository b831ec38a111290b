"""Which replica of each shard a node hosts, by the topology record and by what is on its disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from services.quorum.members import Members, ReplicaRef
from services.runtime import topology_file
from services.runtime.config import Config
from services.runtime.topology import ShardState, ShardTopology, Topology, Voter

Key = tuple[str, int]
"""Collection and shard."""


@dataclass(frozen=True, slots=True)
class Seat:
    """One replica that this node shall host."""

    replica: Voter
    record: ShardTopology
    problem: str
    """Why its directory cannot be served from; "" when it can."""

    @property
    def members(self) -> Members:
        """The voters whose quorums count, or counted last."""
        return members_of(self.record)

    @property
    def frozen(self) -> bool:
        return self.record.state is ShardState.FROZEN

    @property
    def others(self) -> frozenset[str]:
        """Nodes of the other members, learners and proposed ones included."""
        return frozenset(member.node for member in self.record.members()) - {self.replica.node}


def members_of(record: ShardTopology) -> Members:
    """The voters of a record as the quorum counts them."""
    voters = tuple(ReplicaRef(voter.replica_id, voter.node) for voter in record.voters)
    return Members(record.epoch, voters, record.read_quorum, record.write_quorum)


def seats(config: Config, node: str, topology: Topology) -> Mapping[Key, Seat]:
    """What the record assigns to the node. Reads directories.

    Of two members of one shard the first with a directory counts, voters before learners: when a voter's disk is
    gone, its successor on the same node takes the place.
    """
    found: dict[Key, Seat] = {}
    for collection, shard, replica in topology.replicas_of(node):
        record = topology.collections[collection].shards[shard]
        seat = Seat(replica, record, topology_file.replica_problem(config, collection, shard, replica))
        known = found.get((collection, shard))
        if known is None or (known.problem and not seat.problem):
            found[collection, shard] = seat
    return found
