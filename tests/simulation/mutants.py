"""Broken protocols: if the simulator cannot see these, its silence means nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from services.quorum.coalesce import Coalescer
from services.quorum.gtid import GtidSet
from services.quorum.replica import ReplicaCore, ReplicaRows, ReplicaStore
from services.quorum.rows import DocumentState, Op, PullBundle, WriteBatch
from services.quorum.status import ReplicaStatus
from services.quorum.summary import SummaryRound
from services.quorum.write import WriteRound
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

    def new_core(self) -> ReplicaCore:
        return _KeepsItsOwn(self.name, EPOCH, self.durable.applied_set, self.durable.hlc_max)


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


class OneAckFewer(SimRouter):
    """Acknowledges a write when one voter fewer than W has it."""

    def new_write(self, batch: WriteBatch) -> WriteRound:
        fewer = replace(self.members, write_quorum=self.members.write_quorum - 1)
        return WriteRound(fewer, batch)


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


@dataclass(frozen=True, slots=True)
class Mutant:
    """A broken protocol, and within how many seeds it must be noticed: several times what it took when it was added."""

    parts: Parts
    budget: int
    fault: str = ""
    """What is wrong with it, where no class says so."""

    @property
    def breaks(self) -> str:
        """What is wrong with it."""
        doc = next(
            (kind.__doc__ for kind in (self.parts.replica, self.parts.router) if kind.__module__ == __name__), ""
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
    "one-ack-fewer": Mutant(Parts(router=OneAckFewer), 10),
    "require-nothing": Mutant(Parts(router=RequireNothing), 5),
    "silent-not-counted": Mutant(Parts(router=SilentNotCounted), 10),
    "old-summary": Mutant(Parts(router=OldSummary), 60),
    "read-one-of-three": Mutant(Parts(config="3/1/2"), 5, "Reads one voter of three, writes two: R + W = N."),
    "read-two-of-five": Mutant(Parts(config="5/2/3"), 10, "Reads two voters of five, writes three: R + W = N."),
}
MUTANT_CONFIG = "3/2/2"
"""What mutants run in that do not bring their own."""
