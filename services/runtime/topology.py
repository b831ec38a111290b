"""The topology record as plain data: which replica ids are members of which shard, and the change under way.

Router, shard and controller turn it into quorum members themselves. What a record may say, and what may follow it, is
checked here, whatever store it is kept in.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from services.runtime.config import ConfigError

BUCKETS = 256
REPLICA_ID_BYTES = 16


class ShardState(StrEnum):
    """Whether quorum operations are served in the record's epoch."""

    ACTIVE = "active"
    FROZEN = "frozen"


@dataclass(frozen=True, slots=True)
class Voter:
    """One replica, voter or learner, and the node that holds it."""

    replica_id: str
    """32 hex digits, random, never used again."""
    node: str


@dataclass(frozen=True, slots=True)
class ProposedMembers:
    """Who follows when the change under way ends."""

    voters: tuple[Voter, ...]
    learners: tuple[Voter, ...]
    read_quorum: int
    write_quorum: int


@dataclass(frozen=True, slots=True)
class ShardTopology:
    """One epoch of a shard: its members and how many of the voters must agree."""

    epoch: int
    voters: tuple[Voter, ...]
    read_quorum: int
    write_quorum: int
    state: ShardState = ShardState.ACTIVE
    learners: tuple[Voter, ...] = ()
    """Replicas without a vote."""
    proposed: ProposedMembers | None = None
    """Exactly while FROZEN."""
    dead: tuple[str, ...] = ()
    """Ids of voters that somebody vouched for as dead; only while FROZEN."""
    removed: tuple[str, ...] = ()
    """Every id that ever left, sorted; none of them may come back."""

    def members(self) -> tuple[Voter, ...]:
        """Everyone who holds this shard's rows: voters, learners, then who is only proposed yet."""
        coming = () if self.proposed is None else (*self.proposed.voters, *self.proposed.learners)
        return tuple(dict.fromkeys((*self.voters, *self.learners, *coming)))


@dataclass(frozen=True, slots=True)
class CollectionTopology:
    """The shards of one collection and the bucket table."""

    shards: Mapping[int, ShardTopology]
    buckets: tuple[int, ...]
    """BUCKETS entries: bucket -> shard."""


@dataclass(frozen=True, slots=True)
class Topology:
    """The whole record, for the collections that the mesh file declares."""

    collections: Mapping[str, CollectionTopology]

    def replicas_of(self, node: str) -> Iterator[tuple[str, int, Voter]]:
        """Collection, shard and replica of every member on `node`, learners and proposed ones included."""
        for collection, topology in self.collections.items():
            for shard, record in topology.shards.items():
                for member in record.members():
                    if member.node == node:
                        yield collection, shard, member


def shard_of(topology: Topology, collection: str, shard: int) -> ShardTopology:
    """One shard's record. Raises ConfigError when there is none."""
    if collection not in topology.collections:
        known = ", ".join(sorted(topology.collections)) or "none"
        raise ConfigError(f"collection {collection!r} is not in the record; it has {known}")
    shards = topology.collections[collection].shards
    if shard not in shards:
        raise ConfigError(f"collection {collection!r} has no shard {shard}; its shards are 0 to {len(shards) - 1}")
    return shards[shard]


def shard_to_json(shard: ShardTopology) -> dict[str, Any]:
    """The JSON object that `shard_from_json` reads."""
    return asdict(shard)


def shard_from_json(raw: Any) -> ShardTopology:
    """A shard's record; keys that older versions did not write have their defaults.

    Raises KeyError, TypeError or ValueError for anything else than a well-formed record.
    """
    proposed = raw.get("proposed")
    return ShardTopology(
        epoch=int(raw["epoch"]),
        voters=_voters(raw["voters"]),
        read_quorum=int(raw["read_quorum"]),
        write_quorum=int(raw["write_quorum"]),
        state=ShardState(raw.get("state", ShardState.ACTIVE)),
        learners=_voters(raw.get("learners", ())),
        proposed=None if proposed is None else _proposed(proposed),
        dead=tuple(sorted(map(str, raw.get("dead", ())))),
        removed=tuple(sorted(map(str, raw.get("removed", ())))),
    )


def shard_problem(shard: ShardTopology, *, allow_weak: bool = False) -> str:
    """Why no node may follow this record, and what to do about it; "" when all may. `allow_weak`: R + W <= N too."""
    if shard.epoch < 1:
        return f"epoch {shard.epoch} is below 1"
    frozen = shard.state is ShardState.FROZEN
    if frozen != (shard.proposed is not None):
        return "a frozen record names the proposed members and an active one has none"
    voters = {voter.replica_id for voter in shard.voters}
    if shard.dead and not frozen:
        return "only a frozen record names dead voters"
    if unknown := set(shard.dead) - voters:
        return f"{min(unknown)} is called dead but is no voter"
    ids = {member.replica_id for member in shard.members()}
    if back := ids & set(shard.removed):
        return f"replica id {min(back)} was removed and may not come back; add a replica under a new id"
    if not all(map(is_replica_id, ids | set(shard.removed))):
        return "replica ids must be distinct and 32 hex digits"
    if len(ids) != len(shard.members()):
        return "one replica id is on two nodes"
    sets = [(shard.voters, shard.learners, shard.read_quorum, shard.write_quorum)]
    if shard.proposed is not None:
        following = shard.proposed
        sets.append((following.voters, following.learners, following.read_quorum, following.write_quorum))
        if kept := {member.replica_id for member in (*following.voters, *following.learners)} & set(shard.dead):
            return f"{min(kept)} is called dead and cannot stay a member"
    return next((found for one in sets if (found := _members_problem(*one, allow_weak=allow_weak))), "")


def successor_problem(stored: ShardTopology, record: ShardTopology) -> str:
    """Why `record` may not follow `stored`; "" when it may."""
    if record.epoch <= stored.epoch:
        return f"epoch {record.epoch} does not follow {stored.epoch}; read the record again and begin from it"
    kept = {member.replica_id for member in record.members()} | set(record.removed)
    if lost := ({member.replica_id for member in stored.members()} | set(stored.removed)) - kept:
        return f"replica id {min(lost)} is forgotten; name it as a member or as removed"
    return ""


def _members_problem(
    voters: tuple[Voter, ...], learners: tuple[Voter, ...], read_quorum: int, write_quorum: int, *, allow_weak: bool
) -> str:
    count = len(voters)
    if not count:
        return "a shard needs at least one voter"
    listed = Counter(member.replica_id for member in (*voters, *learners))
    if doubled := [replica_id for replica_id, seen in listed.items() if seen > 1]:
        return f"replica ids must be distinct; {doubled[0]} is listed twice"
    for what, members in (("voters", voters), ("learners", learners)):
        nodes = Counter(member.node for member in members)
        if shared := [node for node, seen in nodes.items() if seen > 1]:
            return f"two {what} on one node, {shared[0]}; a node's failure must cost one vote"
    for name, size in (("R", read_quorum), ("W", write_quorum)):
        if not 1 <= size <= count:
            return f"{name}={size} is not between 1 and the {count} voters; change {name} or the voters"
    if read_quorum + write_quorum <= count and not allow_weak:
        return (
            f"R={read_quorum} + W={write_quorum} is not above N={count}: a read could miss an acknowledged write; "
            f"raise R or W so that together they are at least {count + 1}"
        )
    return ""


def _voters(raw: Any) -> tuple[Voter, ...]:
    return tuple(Voter(str(voter["replica_id"]), str(voter["node"])) for voter in raw)


def _proposed(raw: Any) -> ProposedMembers:
    return ProposedMembers(
        _voters(raw["voters"]), _voters(raw["learners"]), int(raw["read_quorum"]), int(raw["write_quorum"])
    )


def is_replica_id(text: str) -> bool:
    """Whether it could name a replica."""
    return len(text) == 2 * REPLICA_ID_BYTES and set(text) <= set("0123456789abcdef")
