"""A change of a shard's members, step by step: events in, effects out.

    ACTIVE(e) -> write FROZEN(e+1) -> fence old voters -> new voters reach U -> write ACTIVE(e+2)

U is the union of what the fenced voters have applied: it holds every write that was or can still be acknowledged in
epoch e. All that must outlive a crash is in the record, so any controller may resume from it or abort; two at once are
harmless, since fences repeat and the record is written by comparing and swapping its epoch.
"""

from __future__ import annotations

from dataclasses import dataclass

from services.quorum.gtid import GtidSet
from services.quorum.members import ReplicaRef
from services.quorum.shard_record import Membership, ShardRecord, ShardState


@dataclass(frozen=True, slots=True)
class WriteRecord:
    """Replace the record if its epoch is still `expected_epoch`; answer with `on_record` and what is stored then."""

    expected_epoch: int
    record: ShardRecord


@dataclass(frozen=True, slots=True)
class SendFence:
    """Make a voter store `epoch` as frozen, durably; answer with `on_fenced`."""

    replica: ReplicaRef
    epoch: int


@dataclass(frozen=True, slots=True)
class CatchUp:
    """Have a coming voter pull `require` from any of `holders`; answer with `on_applied`."""

    replica: ReplicaRef
    require: GtidSet
    holders: tuple[ReplicaRef, ...]


@dataclass(frozen=True, slots=True)
class Finished:
    """The record is ACTIVE again. `by_this`: this controller wrote it."""

    record: ShardRecord
    by_this: bool


Effect = WriteRecord | SendFence | CatchUp | Finished


class Controller:
    """One attempt to bring a FROZEN record to ACTIVE. Effects may be lost; `outstanding` says what to repeat."""

    def __init__(self, record: ShardRecord) -> None:
        """`record`: as it is stored now."""
        self.record = record
        self._fenced: dict[str, GtidSet] = {}
        self._applied: dict[str, GtidSet] = {}
        self._writing: ShardRecord | None = None
        self._finished: Finished | None = None

    def begin(self, proposed: Membership, dead: frozenset[str] = frozenset()) -> tuple[Effect, ...]:
        """Freeze the shard for a change to `proposed`; `dead`: voters vouched for as never to answer again.

        Raises ValueError when the change cannot be made safely, or when another is under way.
        """
        self._writing = self.record.frozen(proposed, dead)
        return self.outstanding()

    def resume(self) -> tuple[Effect, ...]:
        """Go on with the change that the stored record describes; finished if it describes none."""
        if self.record.state is ShardState.ACTIVE:
            self._finished = Finished(self.record, by_this=False)
        return self.outstanding()

    def abort(self) -> tuple[Effect, ...]:
        """Give the change up: the old members go on. Raises ValueError when none is under way."""
        if self.record.state is not ShardState.FROZEN:
            raise ValueError(f"no change is under way in epoch {self.record.epoch}: nothing to abort")
        self._writing = self.record.aborted()
        return self.outstanding()

    def on_record(self, stored: ShardRecord) -> tuple[Effect, ...]:
        """What is stored after an attempt to write, or was read: this controller's record or another's."""
        if self._finished is not None or stored.epoch < self.record.epoch:
            return ()
        written = self._writing is not None and stored == self._writing
        if stored.epoch > self.record.epoch:
            self.record = stored
            self._writing = None
            self._fenced.clear()
            self._applied.clear()
            if stored.state is ShardState.ACTIVE:
                self._finished = Finished(stored, by_this=written)
        return self.outstanding()

    def on_fenced(self, replica_id: str, epoch: int, applied: GtidSet) -> tuple[Effect, ...]:
        """A voter stored `epoch` durably and had applied `applied` afterwards; answers of other epochs do not count."""
        voters = {voter.replica_id for voter in self.record.members.voters} - self.record.dead
        if not self._changing() or epoch != self.record.epoch or replica_id not in voters:
            return ()
        self._fenced.setdefault(replica_id, applied)
        return self.on_applied(replica_id, applied)

    def on_applied(self, replica_id: str, applied: GtidSet) -> tuple[Effect, ...]:
        """How far a coming voter is; what it holds durably only grows."""
        if not self._changing() or self.record.proposed is None:
            return ()
        if any(voter.replica_id == replica_id for voter in self.record.proposed.voters):
            self._applied[replica_id] = self._applied.get(replica_id, GtidSet.EMPTY).union(applied)
        if self.union() is not None and not self._behind():
            self._writing = self.record.activated()
        return self.outstanding()

    def union(self) -> GtidSet | None:
        """U, once enough old voters are fenced."""
        if len(self._fenced) < self.record.fences_needed():
            return None
        union = GtidSet.EMPTY
        for applied in self._fenced.values():
            union = union.union(applied)
        return union

    def outstanding(self) -> tuple[Effect, ...]:
        """What is to be done now; the same effects again until an event moves the change on."""
        if self._finished is not None:
            return (self._finished,)
        if self._writing is not None:
            return (WriteRecord(self.record.epoch, self._writing),)
        if self.record.proposed is None:
            return ()
        union = self.union()
        if union is None:
            return tuple(
                SendFence(voter, self.record.epoch)
                for voter in self.record.members.voters
                if voter.replica_id not in self._fenced and voter.replica_id not in self.record.dead
            )
        holders = tuple(voter for voter in self.record.members.voters if voter.replica_id in self._fenced)
        return tuple(
            CatchUp(voter, union, tuple(holder for holder in holders if holder != voter)) for voter in self._behind()
        )

    def progress(self) -> str:
        """Where the change stands, for people."""
        if self._finished is not None or self.record.proposed is None:
            return f"epoch {self.record.epoch}: {self.record.state.value}"
        if self.union() is None:
            return f"epoch {self.record.epoch}: {len(self._fenced)} of {self.record.fences_needed()} voters fenced"
        ready = len(self.record.proposed.voters) - len(self._behind())
        return f"epoch {self.record.epoch}: {ready} of {len(self.record.proposed.voters)} new voters caught up"

    def _changing(self) -> bool:
        return self._finished is None and self._writing is None and self.record.state is ShardState.FROZEN

    def _behind(self) -> tuple[ReplicaRef, ...]:
        union = self.union()
        if union is None or self.record.proposed is None:
            return ()
        return tuple(
            voter
            for voter in self.record.proposed.voters
            if not self._applied.get(voter.replica_id, GtidSet.EMPTY).issuperset(union)
        )
