"""Who votes for a shard, and how many must agree."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ReplicaRef:
    """A replica's identity, bound for ever to its data directory, and the node that hosts it now."""

    replica_id: str
    node: str


@dataclass(frozen=True, slots=True)
class Members:
    """The voters of one shard in one epoch. Raises ValueError when the numbers cannot work."""

    epoch: int
    voters: tuple[ReplicaRef, ...]
    read_quorum: int
    write_quorum: int

    def __post_init__(self) -> None:
        ids = {voter.replica_id for voter in self.voters}
        if not self.voters or len(ids) != len(self.voters):
            raise ValueError("a shard needs voters with distinct replica ids")
        if not (1 <= self.read_quorum <= len(ids) and 1 <= self.write_quorum <= len(ids)):
            raise ValueError(f"quorums R={self.read_quorum} W={self.write_quorum} do not fit {len(ids)} voters")

    @property
    def intersecting(self) -> bool:
        """R + W > N: every read hears of every acknowledged write."""
        return self.read_quorum + self.write_quorum > len(self.voters)

    def voter(self, replica_id: str) -> ReplicaRef | None:
        """The voter of that id, if it is one."""
        return next((voter for voter in self.voters if voter.replica_id == replica_id), None)
