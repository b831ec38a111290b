"""What one replica decides. Storage and time are arguments; the caller opens and commits the transactions.

Invariants (checked here and by the simulator):
- I1: for every applied batch, each document it names has a head at least as new as the batch's, and each of its
  passages is stored or belongs to a version older than the head.
- I2: the applied set, the clock and every head only grow, and change in one transaction with the rows.
- The applied set is published (`committed`) only after the transaction is durable, together with the view.
- A batch is applied only when the batches it depends on are, so a head never arrives before its passages.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from services.quorum.clock import physical_ms
from services.quorum.gtid import Gtid, GtidSet
from services.quorum.rows import DocumentState, HeadRow, Op, PassageRow, PullBundle, WriteBatch
from services.quorum.status import ReplicaStatus


class ReplicaRows(Protocol):
    """A replica's rows for reading, all of one committed state or of the transaction under way."""

    def head(self, document_id: str) -> HeadRow | None:
        """The document's head, tombstones included."""

    def live_passages(self, document_id: str) -> list[PassageRow]:
        """The passages of the head's version, by ordinal."""

    def staged_passages(self, op: Op) -> list[PassageRow]:
        """Passages of this batch's documents and version whose head has not arrived."""

    def op(self, gtid: Gtid) -> Op | None:
        """What is remembered of an applied batch."""


class ReplicaStore(ReplicaRows, Protocol):
    """A replica's rows, inside a transaction that the caller opened."""

    def put_head(self, head: HeadRow) -> None:
        """Replace the head; passages of older versions are superseded and those of this version become live."""

    def put_passages(self, rows: Sequence[PassageRow]) -> None:
        """Add immutable passages; one already there stays as it is. Live at once if the head has its version."""

    def put_op(self, op: Op) -> None:
        """Remember an applied batch; idempotent."""

    def put_state(self, applied_added: GtidSet, hlc_max: int) -> None:
        """Extend the applied set and raise the clock."""


@dataclass(frozen=True, slots=True)
class ReplicaLimits:
    """Bounds on the versions a replica accepts, in milliseconds against its own clock."""

    write_age_ms: int = 60_000
    clock_skew_ms: int = 5_000


@dataclass(frozen=True, slots=True)
class Summary:
    """A replica's answer in a summary round; `applied` and `hlc_max` count only when the status is OK."""

    replica_id: str
    status: ReplicaStatus
    applied: GtidSet
    hlc_max: int
    epoch: int


class ReplicaCore:
    """The protocol state of one replica: its epoch, applied set and clock."""

    def __init__(
        self,
        replica_id: str,
        epoch: int,
        applied: GtidSet,
        hlc_max: int,
        limits: ReplicaLimits | None = None,
    ) -> None:
        self.replica_id = replica_id
        self.epoch = epoch
        self._limits = limits or ReplicaLimits()
        self._published = (applied, hlc_max)
        self._staged = self._published

    @property
    def applied(self) -> GtidSet:
        """The published applied set: durable and in the view. One reference, safe to read from any thread."""
        return self._published[0]

    @property
    def hlc_max(self) -> int:
        """The highest clock reading among published writes."""
        return self._published[1]

    def missing(self, require: GtidSet) -> GtidSet:
        """What of `require` is not applied here."""
        return require.difference(self.applied)

    def summary(self, epoch: int) -> Summary:
        """The answer to a summary round of a caller whose topology has this epoch."""
        applied, hlc_max = self._published
        return Summary(self.replica_id, self.epoch_status(epoch), applied, hlc_max, self.epoch)

    def epoch_status(self, epoch: int) -> ReplicaStatus:
        """Whether a request of this epoch may be served."""
        if epoch < self.epoch:
            return ReplicaStatus.STALE_EPOCH
        return ReplicaStatus.STALE_TOPOLOGY if epoch > self.epoch else ReplicaStatus.OK

    def admit(self, batch: WriteBatch, epoch: int, now_ms: int) -> ReplicaStatus:
        """Whether a batch is worth queueing; the answer is checked again inside the transaction."""
        return self._check(batch, epoch, now_ms, self.applied)

    def apply(self, batches: Sequence[tuple[WriteBatch, int]], now_ms: int, store: ReplicaStore) -> list[ReplicaStatus]:
        """Apply (batch, epoch) pairs in order inside one transaction; refused ones change nothing.

        The new applied set is staged until `committed`. A row that loses to a newer head still counts as applied: it
        is ordered before a concurrent winner.
        """
        applied, hlc_max = self._staged
        before = applied
        answers: list[ReplicaStatus] = []
        for batch, epoch in batches:
            status = self._check(batch, epoch, now_ms, applied)
            answers.append(status)
            if status is ReplicaStatus.OK and batch.gtid not in applied:
                self._write(batch, store)
                applied = applied.add(batch.gtid)
                hlc_max = max(hlc_max, batch.version.hlc)
        self._stage(applied, hlc_max, before, store)
        return answers

    def merge(self, bundle: PullBundle, store: ReplicaStore) -> None:
        """Merge a peer's state inside one transaction; idempotent, order-free. Staged until `committed`."""
        applied, hlc_max = self._staged
        for document in bundle.documents:
            self._merge_document(document, store)
        self._put_newer(bundle.staged, store)
        for op in bundle.ops:
            store.put_op(op)
        versions = [bundle.hlc_max, hlc_max, *(document.head.version.hlc for document in bundle.documents)]
        self._stage(applied.union(bundle.covers), max(versions), applied, store)

    def committed(self) -> None:
        """The transaction is durable: publish what it staged, together with the view."""
        assert self._staged[0].issuperset(self._published[0])
        self._published = self._staged

    def aborted(self) -> None:
        """The transaction was rolled back: forget what it staged."""
        self._staged = self._published

    def pull(self, want: GtidSet, store: ReplicaRows, documents_max: int = 256) -> Iterator[PullBundle]:
        """What this replica has of `want`, as self-contained bundles of about `documents_max` documents.

        `store` must be at least as new as the published state. A batch whose documents were replaced since is
        answered with their current state, never with a head without its passages.
        """
        applied, hlc_max = self._published
        ops: list[Op] = []
        names: dict[str, None] = {}
        for gtid in want.intersection(applied):
            op = store.op(gtid)
            if op is None:
                continue
            ops.append(op)
            names.update(dict.fromkeys(op.document_ids))
            if len(names) >= documents_max:
                yield self._bundle(ops, names, hlc_max, store)
                ops, names = [], {}
        if ops:
            yield self._bundle(ops, names, hlc_max, store)

    def _bundle(self, ops: Sequence[Op], names: dict[str, None], hlc_max: int, store: ReplicaRows) -> PullBundle:
        documents = []
        for document_id in names:
            head = store.head(document_id)
            if head is not None:
                documents.append(DocumentState(head, tuple(store.live_passages(document_id))))
        staged = [row for op in ops for row in store.staged_passages(op)]
        return PullBundle(
            covers=GtidSet.of(*(op.gtid for op in ops)),
            documents=tuple(documents),
            staged=tuple(staged),
            ops=tuple(ops),
            hlc_max=hlc_max,
        )

    def _check(self, batch: WriteBatch, epoch: int, now_ms: int, applied: GtidSet) -> ReplicaStatus:
        status = self.epoch_status(epoch)
        if status is not ReplicaStatus.OK or batch.gtid in applied:
            return status
        at_ms = physical_ms(batch.version.hlc)
        if at_ms < now_ms - self._limits.write_age_ms:
            return ReplicaStatus.TOO_OLD
        if at_ms > now_ms + self._limits.clock_skew_ms:
            return ReplicaStatus.CLOCK_SKEW
        if not applied.issuperset(batch.depends):
            return ReplicaStatus.MISSING_DEPENDENCY
        return ReplicaStatus.OK

    def _write(self, batch: WriteBatch, store: ReplicaStore) -> None:
        self._put_newer(batch.passages, store)
        for head in batch.heads:
            assert head.version == batch.version
            current = store.head(head.document_id)
            if current is None or head.version > current.version:
                store.put_head(head)
        store.put_op(Op(batch.gtid, batch.version, batch.document_ids()))

    def _merge_document(self, document: DocumentState, store: ReplicaStore) -> None:
        head = document.head
        assert len(document.passages) == head.passages, "a pulled document is whole"
        current = store.head(head.document_id)
        if current is not None and current.version > head.version:
            return
        store.put_passages(document.passages)
        if current is None or head.version > current.version:
            store.put_head(head)

    def _put_newer(self, rows: Sequence[PassageRow], store: ReplicaStore) -> None:
        """Store passages that are not older than their document's head."""
        heads: dict[str, HeadRow | None] = {}
        kept = []
        for row in rows:
            if row.document_id not in heads:
                heads[row.document_id] = store.head(row.document_id)
            head = heads[row.document_id]
            if head is None or row.version >= head.version:
                kept.append(row)
        if kept:
            store.put_passages(kept)

    def _stage(self, applied: GtidSet, hlc_max: int, before: GtidSet, store: ReplicaStore) -> None:
        added = applied.difference(before)
        if added or hlc_max > self._staged[1]:
            store.put_state(added, hlc_max)
        self._staged = (applied, hlc_max)
