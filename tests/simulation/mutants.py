"""Broken protocols: if the simulator cannot see these, its silence means nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from services.quorum.coalesce import Coalescer
from services.quorum.gtid import GtidSet
from services.quorum.replica import ReplicaCore, ReplicaRows, ReplicaStore
from services.quorum.rows import DocumentState, Op, PullBundle, WriteBatch
from services.quorum.status import ReplicaStatus
from services.quorum.summary import SummaryRound
from tests.simulation.cluster import Parts
from tests.simulation.memory_store import Transaction
from tests.simulation.replica import EPOCH, Answer, PendingWrite, SimReplica, View
from tests.simulation.router import SimRouter

Answers = list[tuple[Answer, ReplicaStatus]]


class AckBeforeCommit(SimReplica):
    """Acknowledges rows that are not synced; a crash loses them."""

    def write(self, jobs: Sequence[PendingWrite | PullBundle], transaction: Transaction) -> Answers:
        for answer, status in super().write(jobs, transaction):
            answer(status)
        return []


class SetBeforeRows(SimReplica):
    """Publishes the applied set at once; the rows follow with the commit."""

    def write(self, jobs: Sequence[PendingWrite | PullBundle], transaction: Transaction) -> Answers:
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


class PullWithoutCovering(SimReplica):
    """Ships a document's newest state without covering the batch that wrote it."""

    def new_core(self) -> ReplicaCore:
        return _OpenPull(self.name, EPOCH, self.durable.applied_set, self.durable.hlc_max)


class _ArrivalWins(ReplicaCore):
    def _write(self, batch: WriteBatch, store: ReplicaStore) -> None:
        store.put_passages(batch.passages)
        for head in batch.heads:
            store.put_head(head)
        store.put_op(Op(batch.gtid, batch.version, batch.document_ids()))


class ArrivalWins(SimReplica):
    """Lets the batch that arrives last win, whatever its version."""

    def new_core(self) -> ReplicaCore:
        return _ArrivalWins(self.name, EPOCH, self.durable.applied_set, self.durable.hlc_max)


class NoClockRound(SimRouter):
    """Takes versions from its own clock alone."""

    def version_floor(self, round_: SummaryRound) -> int:
        return 0


class _EmptyRequire(SummaryRound):
    def require(self) -> GtidSet:
        return GtidSet.EMPTY


class RequireNothing(SimRouter):
    """Accepts any view."""

    def new_round(self) -> SummaryRound:
        return _EmptyRequire(self.members)


class _CountsAnswersOnly(SummaryRound):
    def require(self) -> GtidSet:
        sets = [self.applied(voter.replica_id) for voter in self.members.voters]
        return GtidSet.at_least([held for held in sets if held is not None], self.members.write_quorum)


class SilentNotCounted(SimRouter):
    """Forgets that a silent voter may hold a batch."""

    def new_round(self) -> SummaryRound:
        return _CountsAnswersOnly(self.members)


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


MUTANTS: dict[str, Parts] = {
    "ack-before-commit": Parts(replica=AckBeforeCommit),
    "set-before-rows": Parts(replica=SetBeforeRows),
    "set-read-after-search": Parts(replica=SetReadAfterSearch),
    "head-without-depends": Parts(replica=HeadWithoutDepends),
    "pull-part": Parts(replica=PullPart),
    "pull-without-covering": Parts(replica=PullWithoutCovering),
    "arrival-wins": Parts(replica=ArrivalWins),
    "no-clock-round": Parts(router=NoClockRound),
    "require-nothing": Parts(router=RequireNothing),
    "silent-not-counted": Parts(router=SilentNotCounted),
    "old-summary": Parts(router=OldSummary),
    "read-one": Parts(config="3/1/2"),
}
