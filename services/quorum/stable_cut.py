"""What every member of a shard has applied: only that may be forgotten.

A replica forgets the operation that named a batch, and a tombstone that it left, once no member can need them: each
declared, in the epoch that the forgetter is in itself, that it has applied the batch. A member that joins later is in
no such cut, so it is given the whole state of one that forgot (`ReplicaCore.state`), and pulls from nobody who has not
read the record that names it: what it was given before a declaration could not have been old news afterwards.
Cf. DottedDB's causal stability (SRDS 2017); ScyllaDB purges after repair instead, with a propagation delay.
"""

from __future__ import annotations

from collections.abc import Iterable

from services.quorum.gtid import GtidSet


class StableCut:
    """What the other members, learners included, said in one epoch that they have applied."""

    def __init__(self, epoch: int, others: Iterable[str]) -> None:
        self.epoch = epoch
        self._applied: dict[str, GtidSet | None] = dict.fromkeys(others)

    def heard(self, replica_id: str, epoch: int, applied: GtidSet) -> None:
        """A member declares what it has applied; what it says of another epoch does not count."""
        if epoch == self.epoch and replica_id in self._applied:
            before = self._applied[replica_id]
            self._applied[replica_id] = applied if before is None else before.union(applied)

    def cut(self, own: GtidSet) -> GtidSet:
        """What all of them and this replica have applied; nothing until everyone was heard."""
        for applied in self._applied.values():
            own = own.intersection(applied or GtidSet.EMPTY)
        return own
