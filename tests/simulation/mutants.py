"""Broken protocols: if the simulator cannot see these, its silence means nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from services.quorum.coalesce import Coalescer
from services.quorum.controller import Controller
from services.quorum.gtid import Gtid, GtidSet
from services.quorum.members import Members, ReplicaRef
from services.quorum.replica import Forgotten, ReplicaCore, ReplicaRows, ReplicaStore, Summary
from services.quorum.rows import DocumentState, Op, PullBundle, WriteBatch
from services.quorum.shard_record import Membership, ShardRecord, ShardState
from services.quorum.stable_cut import StableCut
from services.quorum.status import ReplicaStatus
from services.quorum.summary import SummaryRound
from services.quorum.write import WriteRound
from tests.simulation import directed
from tests.simulation.cluster import Parts
from tests.simulation.controlling import SimController
from tests.simulation.directed import Schedule
from tests.simulation.membership import members_record
from tests.simulation.memory_store import DurableRows, Transaction
from tests.simulation.record_store import RecordStore
from tests.simulation.replica import Answer, Job, SimReplica, View
from tests.simulation.router import SimRouter
from tests.simulation.timeline import MS

Answers = list[tuple[Answer, ReplicaStatus]]


class AckBeforeCommit(SimReplica):
    """Acknowledges rows that are not synced; a crash loses them."""

    def write(self, jobs: Sequence[Job], transaction: Transaction) -> Answers:
        for answer, status in super().write(jobs, transaction):
            answer(status)
        return []


class SetBeforeRows(SimReplica):
    """Publishes the applied set at once; the rows follow with the commit."""

    def write(self, jobs: Sequence[Job], transaction: Transaction) -> Answers:
        answers = super().write(jobs, transaction)
        self.core.committed()
        self.show(View(self.core.applied, self.view.live))
        return answers


class SetReadAfterSearch(SimReplica):
    """Sends the applied set of the moment with hits of an older view."""

    def announced(self, view: View) -> GtidSet:
        return self.view.applied


class HeadWithoutDepends(SimReplica):
    """Applies a head although batches it depends on are missing."""

    def on_write(self, batch: WriteBatch, epoch: int, answer: Answer) -> None:
        super().on_write(replace(batch, depends=GtidSet.EMPTY), epoch, answer)


class PullPart(SimReplica):
    """Ships a document without its last passage."""

    def bundles(self, want: GtidSet, have: GtidSet) -> list[PullBundle]:
        return [
            replace(bundle, documents=tuple(_shortened(document) for document in bundle.documents))
            for bundle in super().bundles(want, have)
        ]


def _shortened(document: DocumentState) -> DocumentState:
    if len(document.passages) < 2:
        return document
    head = replace(document.head, passages=document.head.passages - 1)
    return DocumentState(head, document.passages[:-1])


class _OpenPull(ReplicaCore):
    def pull(
        self, want: GtidSet, store: ReplicaRows, documents_max: int = 256, have: GtidSet = GtidSet.EMPTY
    ) -> Iterator[PullBundle]:
        for bundle in super().pull(want, store, documents_max, have):
            ops = tuple(op for op in bundle.ops if op.gtid in want)
            yield replace(bundle, ops=ops, covers=GtidSet.of(*(op.gtid for op in ops)))


class PullWithoutTombstones(SimReplica):
    """Ships no deletes to a replica that missed them."""

    def bundles(self, want: GtidSet, have: GtidSet) -> list[PullBundle]:
        return [
            replace(bundle, documents=tuple(document for document in bundle.documents if document.head.passages))
            for bundle in super().bundles(want, have)
        ]


class _KeepsItsOwn(ReplicaCore):
    def _merge_document(self, document: DocumentState, store: ReplicaStore) -> None:
        if store.head(document.head.document_id) is None:
            super()._merge_document(document, store)


class PullKeepsItsOwn(SimReplica):
    """Takes from a peer only documents that it does not know."""

    core_type = _KeepsItsOwn


class PullWithoutCovering(SimReplica):
    """Ships a document's newest state without covering the batch that wrote it."""

    core_type = _OpenPull


class _ArrivalWins(ReplicaCore):
    def _write(self, batch: WriteBatch, store: ReplicaStore) -> None:
        store.put_passages(batch.passages)
        for head in batch.heads:
            store.put_head(head)
        store.put_op(Op(batch.gtid, batch.version, batch.document_ids()))


class ArrivalWins(SimReplica):
    """Lets the batch that arrives last win, whatever its version."""

    core_type = _ArrivalWins


class NoClockRound(SimRouter):
    """Takes versions from its own clock alone."""

    def version_floor(self, round_: SummaryRound) -> int:
        return 0


class NoWriteBack(SimRouter):
    """Returns what a LINEARIZABLE lookup found although fewer than W voters may hold it."""

    def held_by(self, members: Members) -> int:
        return 0


class OneAckFewer(SimRouter):
    """Acknowledges a write when one voter fewer than W has it."""

    def new_write(self, members: Members, batch: WriteBatch) -> WriteRound:
        fewer = replace(members, write_quorum=members.write_quorum - 1)
        return WriteRound(fewer, batch)


class _EmptyRequire(SummaryRound):
    def require(self) -> GtidSet:
        return GtidSet.EMPTY


class RequireNothing(SimRouter):
    """Accepts any view."""

    def new_round(self, members: Members) -> SummaryRound:
        return _EmptyRequire(members)


class _CountsAnswersOnly(SummaryRound):
    def require(self) -> GtidSet:
        sets = [self.applied(voter.replica_id) for voter in self.members.voters]
        return GtidSet.at_least([held for held in sets if held is not None], self.members.write_quorum)


class SilentNotCounted(SimRouter):
    """Forgets that a silent voter may hold a batch."""

    def new_round(self, members: Members) -> SummaryRound:
        return _CountsAnswersOnly(members)


class _RidesAlong(Coalescer[int]):
    def arrive(self, ticket: int) -> bool:
        if self._flight is None:
            return super().arrive(ticket)
        self._flight[ticket] = None
        return False


class OldSummary(SimRouter):
    """Lets an operation use a summary that was asked for before it arrived."""

    def new_lane(self) -> Coalescer[int]:
        return _RidesAlong()


class _ForgetsToCatchUp(Controller):
    def _behind(self) -> tuple[ReplicaRef, ...]:
        return ()


class NoCatchUp(SimController):
    """Activates new voters that lack what was acknowledged before."""

    controller_type = _ForgetsToCatchUp


class _FencesOne(Controller):
    def union(self) -> GtidSet | None:
        return next(iter(self._fenced.values()), None)


class FenceOne(SimController):
    """Fences one voter, whatever R and W are."""

    controller_type = _FencesOne


class _FencesAfterAnswering(ReplicaCore):
    def fence(self, epoch: int, store: ReplicaStore) -> ReplicaStatus:
        return ReplicaStatus.OK


class FenceForgotten(SimReplica):
    """Answers a fence and goes on in the old epoch."""

    core_type = _FencesAfterAnswering


class _AnswersFrozen(ReplicaCore):
    def epoch_status(self, epoch: int) -> ReplicaStatus:
        status = super().epoch_status(epoch)
        return ReplicaStatus.OK if epoch == self.epoch else status


class AnswersFrozen(SimReplica):
    """Answers summaries in a frozen epoch."""

    core_type = _AnswersFrozen


class ReadsFrozen(SimRouter):
    """Reads at quorum in a frozen epoch."""

    def on_record(self, record: ShardRecord) -> None:
        super().on_record(record)
        members = record.members
        self.members = Members(record.epoch, members.voters, members.read_quorum, members.write_quorum)

    @property
    def frozen(self) -> bool:
        return False


class _ChecksOnReceipt(ReplicaCore):
    def apply(self, batches: Sequence[tuple[WriteBatch, int]], now_ms: int, store: ReplicaStore) -> list[ReplicaStatus]:
        place = self._place_staged
        self._place_staged = (place[0], False)
        answers = super().apply([(batch, place[0]) for batch, _ in batches], now_ms, store)
        self._place_staged = place
        return answers


class ChecksOnReceipt(SimReplica):
    """Checks the epoch of a batch when it arrives, not when it is committed."""

    core_type = _ChecksOnReceipt


class _IgnoresEpochs(_ChecksOnReceipt):
    def epoch_status(self, epoch: int) -> ReplicaStatus:
        return ReplicaStatus.OK

    def summary(self, epoch: int) -> Summary:
        return replace(super().summary(epoch), epoch=epoch)


class IgnoresEpochs(SimReplica):
    """Serves whoever asks, whatever epoch they are in."""

    core_type = _IgnoresEpochs


class RejoinsEmpty(SimReplica):
    """Comes back under its id after losing its disk."""

    def die(self) -> None:
        super().die()
        if self.gone and self.name in self.known_ids():
            self.gone = False
            self.durable = DurableRows()
            self.timeline.after(100 * MS, lambda: None if self.up else self.start())


class RecoversInPlace(RejoinsEmpty):
    """Comes back under its id after losing its disk, and votes once it holds what its peers hold."""

    _owes: dict[str, GtidSet] | None = None

    def die(self) -> None:
        lost = self.gone
        super().die()
        if lost and not self.gone:
            self._owes = {}

    def on_summary(self, epoch: int) -> Summary:
        summary = super().on_summary(epoch)
        return summary if self._recovered() else replace(summary, status=ReplicaStatus.FAILED)

    def on_write(self, batch: WriteBatch, epoch: int, answer: Answer) -> None:
        if self._recovered():
            super().on_write(batch, epoch, answer)
        else:
            answer(ReplicaStatus.FAILED)

    def _recovered(self) -> bool:
        if self._owes is None:
            return True
        for name, peer in self.peers.items():
            if name not in self._owes and peer.up and (self.name, name) not in self.network.cut:
                self._owes[name] = peer.core.applied
                self.pull(name, peer.core.applied)
        heard = list(self._owes.values())
        if heard and all(self.core.applied.issuperset(held) for held in heard) and len(heard) * 2 >= len(self.peers):
            self._owes = None
        return self._owes is None


class AcksAcrossEpochs(SimRouter):
    """Counts what voters of an older epoch acknowledged."""

    def start(self) -> None:
        super().start()
        self._rounds: dict[Gtid, WriteRound] = {}

    def new_write(self, members: Members, batch: WriteBatch) -> WriteRound:
        former = self._rounds.get(batch.gtid)
        if former is not None:
            members = replace(members, write_quorum=max(1, members.write_quorum - former.acks))
        self._rounds[batch.gtid] = super().new_write(members, batch)
        return self._rounds[batch.gtid]


class LearnersVote(SimRouter):
    """Counts learners as voters."""

    def on_record(self, record: ShardRecord) -> None:
        super().on_record(record)
        if record.state is ShardState.ACTIVE:
            members = record.members
            self.members = Members(record.epoch, members.all(), members.read_quorum, members.write_quorum)


class _NoFloor(ReplicaCore):
    def _check(self, batch: WriteBatch, status: ReplicaStatus, now_ms: int, applied: GtidSet) -> ReplicaStatus:
        staged, self._forgotten_staged = self._forgotten_staged, Forgotten()
        answer = super()._check(batch, status, now_ms, applied)
        self._forgotten_staged = staged
        return answer


class NoFloor(SimReplica):
    """Accepts batches older than what it has forgotten."""

    core_type = _NoFloor


class ForgetsByAge(SimReplica):
    """Forgets by age alone, whoever may not have applied it yet."""

    def forgettable(self, cut: StableCut) -> GtidSet:
        return self.core.applied


class CutWithoutLearners(SimReplica):
    """Asks only voters what may be forgotten."""

    def cut_ids(self) -> frozenset[str]:
        assert self._follower is not None
        return frozenset(voter.replica_id for voter in self._follower.record.members.voters)


class _MergesAnything(ReplicaCore):
    def merge(self, bundle: PullBundle, store: ReplicaStore) -> bool:
        return super().merge(replace(bundle, as_of=bundle.as_of.union(self._forgotten_staged.gtids)), store)


class MergesAnything(SimReplica):
    """Merges what a peer sent before it had applied what is forgotten here."""

    core_type = _MergesAnything


class JoinsAtOnce(SimReplica):
    """Serves before it has all that its peers have forgotten."""

    def follow(self, store: RecordStore, record: ShardRecord, world: Mapping[str, SimReplica]) -> None:
        self.joined = True
        super().follow(store, record, world)


class OldSnapshot(SimReplica):
    """Takes a whole state on top of a snapshot that lacks forgotten deletes."""

    def follow(self, store: RecordStore, record: ShardRecord, world: Mapping[str, SimReplica]) -> None:
        self.restored = False
        super().follow(store, record, world)


class _WeakMembership(Membership):
    def __post_init__(self) -> None:
        """Accepts quorums that do not intersect."""


def _weak_record(config: str) -> ShardRecord:
    return members_record(config, _WeakMembership)


@dataclass(frozen=True, slots=True)
class Mutant:
    """A broken protocol, and within how many seeds it must be noticed: several times what it took when it was added.

    What chance hardly ever meets has a schedule of its own instead, and a budget of 0.
    """

    parts: Parts
    budget: int = 0
    fault: str = ""
    """What is wrong with it, where no class says so."""
    schedule: Schedule | None = None

    @property
    def breaks(self) -> str:
        """What is wrong with it."""
        doc = next(
            (
                kind.__doc__
                for kind in (self.parts.replica, self.parts.router, self.parts.controller)
                if kind.__module__ == __name__
            ),
            "",
        )
        return self.fault or (doc or "").strip()


MUTANTS: dict[str, Mutant] = {
    "ack-before-commit": Mutant(Parts(replica=AckBeforeCommit), 10),
    "set-before-rows": Mutant(Parts(replica=SetBeforeRows), 5),
    "set-read-after-search": Mutant(Parts(replica=SetReadAfterSearch), 20),
    "head-without-depends": Mutant(Parts(replica=HeadWithoutDepends), 20),
    "pull-part": Mutant(Parts(replica=PullPart), 5),
    "pull-without-tombstones": Mutant(Parts(replica=PullWithoutTombstones), 10),
    "pull-keeps-its-own": Mutant(Parts(replica=PullKeepsItsOwn), 10),
    "pull-without-covering": Mutant(Parts(replica=PullWithoutCovering), 10),
    "arrival-wins": Mutant(Parts(replica=ArrivalWins), 5),
    "no-clock-round": Mutant(Parts(router=NoClockRound), 5),
    "no-write-back": Mutant(Parts(router=NoWriteBack), schedule=directed.looked_up_twice),
    "one-ack-fewer": Mutant(Parts(router=OneAckFewer), 10),
    "require-nothing": Mutant(Parts(router=RequireNothing), 5),
    "silent-not-counted": Mutant(Parts(router=SilentNotCounted), 10),
    "old-summary": Mutant(Parts(router=OldSummary), schedule=directed.asked_before_and_answered_after),
    "no-catch-up": Mutant(Parts(controller=NoCatchUp), 150),
    "fence-one": Mutant(Parts(controller=FenceOne), schedule=directed.fenced_one_of_two),
    "fence-forgotten": Mutant(Parts(replica=FenceForgotten), schedule=directed.written_after_the_fence),
    "frozen-read": Mutant(Parts(replica=AnswersFrozen, router=ReadsFrozen), schedule=directed.read_in_a_frozen_epoch),
    "epoch-on-receipt": Mutant(Parts(replica=ChecksOnReceipt), schedule=directed.fence_between_receipt_and_commit),
    "ignores-epochs": Mutant(Parts(replica=IgnoresEpochs), schedule=directed.a_router_two_epochs_behind),
    "rejoins-empty": Mutant(Parts(replica=RejoinsEmpty), schedule=directed.acknowledged_before_the_disk_was_lost),
    "recovers-in-place": Mutant(
        Parts(replica=RecoversInPlace), schedule=directed.acknowledged_before_the_disk_was_lost
    ),
    "acks-across-epochs": Mutant(Parts(router=AcksAcrossEpochs), schedule=directed.acknowledged_by_a_removed_voter),
    "learners-vote": Mutant(Parts(router=LearnersVote), 120),
    "no-floor": Mutant(Parts(replica=NoFloor), schedule=directed.a_batch_older_than_a_forgotten_delete),
    "forgets-by-age": Mutant(Parts(replica=ForgetsByAge), 60),
    "cut-without-learners": Mutant(Parts(replica=CutWithoutLearners), schedule=directed.forgotten_behind_a_learner),
    "merges-anything": Mutant(
        Parts(replica=MergesAnything), schedule=directed.pulled_before_a_delete_and_merged_after_it_was_forgotten
    ),
    "joins-at-once": Mutant(Parts(replica=JoinsAtOnce), 60),
    "old-snapshot": Mutant(Parts(replica=OldSnapshot), schedule=directed.a_snapshot_older_than_a_forgotten_delete),
    "read-one-of-three": Mutant(
        Parts(config="3/1/2", record=_weak_record), 5, "Reads one voter of three, writes two: R + W = N."
    ),
    "read-two-of-five": Mutant(
        Parts(config="5/2/3", record=_weak_record), 10, "Reads two voters of five, writes three: R + W = N."
    ),
}
MUTANT_CONFIG = "3/2/2"
"""What mutants run in that do not bring their own."""
