"""The topology record of one shard: who its members are in which epoch, and the change under way.

The record is the only recovery state of a reconfiguration: whatever a controller knew beyond it can be learned again.
ACTIVE serves; FROZEN neither reads nor writes at quorum, and says which members follow.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from enum import Enum

from services.quorum.members import Members, ReplicaRef


class ShardState(Enum):
    """Whether quorum operations are served in the record's epoch."""

    ACTIVE = "active"
    FROZEN = "frozen"


@dataclass(frozen=True, slots=True)
class Membership:
    """Voters, learners and quorum sizes. Raises ValueError when acknowledged writes could be missed or ids clash."""

    voters: tuple[ReplicaRef, ...]
    learners: tuple[ReplicaRef, ...]
    read_quorum: int
    write_quorum: int

    def __post_init__(self) -> None:
        count = len(self.voters)
        if not count:
            raise ValueError("a shard needs at least one voter")
        if any(not member.replica_id or not member.node for member in self.all()):
            raise ValueError("a replica needs an id and a node")
        doubled = [name for name, seen in Counter(member.replica_id for member in self.all()).items() if seen > 1]
        if doubled:
            raise ValueError(f"replica id {doubled[0]} is listed twice; every member needs an id of its own")
        for name, size in (("R", self.read_quorum), ("W", self.write_quorum)):
            if not 1 <= size <= count:
                raise ValueError(f"{name}={size} is not between 1 and the {count} voters; change {name} or the voters")
        if self.read_quorum + self.write_quorum <= count:
            raise ValueError(
                f"R={self.read_quorum} + W={self.write_quorum} is not above N={count}: a read could miss an "
                f"acknowledged write; raise R or W so that together they are at least {count + 1}"
            )

    def all(self) -> tuple[ReplicaRef, ...]:
        """Voters, then learners."""
        return (*self.voters, *self.learners)

    def ids(self) -> frozenset[str]:
        """The id of every member."""
        return frozenset(member.replica_id for member in self.all())


@dataclass(frozen=True, slots=True)
class ShardRecord:
    """One epoch of a shard. Raises ValueError when its parts contradict each other.

    `proposed`: the members that follow, exactly while FROZEN. `dead`: voters that someone vouched for as dead, exactly
    while FROZEN. `removed`: every id that ever left; none of them may come back.
    """

    epoch: int
    state: ShardState
    members: Membership
    proposed: Membership | None = None
    dead: frozenset[str] = frozenset()
    removed: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if self.epoch < 1:
            raise ValueError(f"epoch {self.epoch} is below 1")
        frozen = self.state is ShardState.FROZEN
        if frozen != (self.proposed is not None):
            raise ValueError("a FROZEN record names the proposed members, an ACTIVE one has none")
        if self.dead and not frozen:
            raise ValueError("only a FROZEN record names dead voters")
        if unknown := self.dead - {voter.replica_id for voter in self.members.voters}:
            raise ValueError(f"{min(unknown)} is called dead but is no voter of epoch {self.epoch}")
        for members in (self.members, self.proposed):
            if members is not None and (back := members.ids() & self.removed):
                raise ValueError(f"replica id {min(back)} was removed and may not come back; start it under a new id")
        if self.proposed is not None and (kept := self.proposed.ids() & self.dead):
            raise ValueError(f"{min(kept)} is called dead and cannot stay a member")

    def quorum_members(self) -> Members:
        """The voters as rounds count them. Raises ValueError while FROZEN: there are no quorum rounds then."""
        if self.state is ShardState.FROZEN:
            raise ValueError(f"the shard is frozen in epoch {self.epoch}; quorum operations wait for the next one")
        return Members(self.epoch, self.members.voters, self.members.read_quorum, self.members.write_quorum)

    def fences_needed(self) -> int:
        """How many living old voters must refuse the old epoch.

        N-W+1 of them meet every acknowledged write, and leave fewer than W for new ones. N-R+1 leave fewer than R for
        summaries; a voter that is dead answers none, so each counts as refusing.
        """
        count = len(self.members.voters)
        return max(count - self.members.write_quorum + 1, count - self.members.read_quorum + 1 - len(self.dead))

    def frozen(self, proposed: Membership, dead: frozenset[str] = frozenset()) -> ShardRecord:
        """The record that begins a change to `proposed`. Raises ValueError when the change cannot be made safely."""
        if self.state is not ShardState.ACTIVE:
            raise ValueError(f"a change is under way in epoch {self.epoch}; resume or abort it first")
        record = replace(self, epoch=self.epoch + 1, state=ShardState.FROZEN, proposed=proposed, dead=dead)
        living = len(self.members.voters) - len(dead)
        if living < record.fences_needed():
            raise ValueError(
                f"{living} living voters cannot show every acknowledged write: {record.fences_needed()} are needed; "
                "bring a voter back, or restore the shard from a snapshot"
            )
        return record

    def activated(self) -> ShardRecord:
        """The record that ends the change with the proposed members."""
        assert self.proposed is not None
        left = self.members.ids() - self.proposed.ids()
        return ShardRecord(self.epoch + 1, ShardState.ACTIVE, self.proposed, removed=self.removed | left)

    def aborted(self) -> ShardRecord:
        """The record that ends the change with the old members.

        New ids are given up for good: one may hold rows that a later member of its name would be thought to lack.
        """
        assert self.proposed is not None
        given_up = self.proposed.ids() - self.members.ids()
        return ShardRecord(self.epoch + 1, ShardState.ACTIVE, self.members, removed=self.removed | given_up)

    def with_learner(self, learner: ReplicaRef) -> ShardRecord:
        """One more learner. Voters stay, so nothing is fenced. Raises ValueError while FROZEN or for a known id."""
        if self.state is not ShardState.ACTIVE:
            raise ValueError(f"a change is under way in epoch {self.epoch}; resume or abort it first")
        members = replace(self.members, learners=(*self.members.learners, learner))
        return replace(self, epoch=self.epoch + 1, members=members)


def with_added(members: Membership, voter: ReplicaRef, *, read_quorum: int, write_quorum: int) -> Membership:
    """`members` with a new voter, or a learner promoted. Raises ValueError for a voter that is one already."""
    learners = tuple(learner for learner in members.learners if learner.replica_id != voter.replica_id)
    return Membership((*members.voters, voter), learners, read_quorum, write_quorum)


def with_removed(members: Membership, replica_id: str, *, read_quorum: int, write_quorum: int) -> Membership:
    """`members` without a voter or learner. Raises ValueError for an id that is no member."""
    _must_be_member(members, replica_id)
    voters, learners = (
        tuple(member for member in listed if member.replica_id != replica_id)
        for listed in (members.voters, members.learners)
    )
    return Membership(voters, learners, read_quorum, write_quorum)


def with_replaced(members: Membership, replica_id: str, successor: ReplicaRef) -> Membership:
    """`members` with `successor` in a voter's place; a learner may be promoted. Raises ValueError for no voter."""
    if all(voter.replica_id != replica_id for voter in members.voters):
        raise ValueError(f"{replica_id} is no voter of this shard; name one of {_names(members.voters)}")
    voters = tuple(successor if voter.replica_id == replica_id else voter for voter in members.voters)
    learners = tuple(learner for learner in members.learners if learner.replica_id != successor.replica_id)
    return replace(members, voters=voters, learners=learners)


def _must_be_member(members: Membership, replica_id: str) -> None:
    if replica_id not in members.ids():
        raise ValueError(f"{replica_id} is no member of this shard; name one of {_names(members.all())}")


def _names(replicas: tuple[ReplicaRef, ...]) -> str:
    return ", ".join(sorted(replica.replica_id for replica in replicas))
