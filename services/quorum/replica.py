"""What one replica decides. Storage and time are arguments; the caller opens and commits the transactions.

Invariants (checked here and by the simulator):
- I1: for every applied batch, each document it names has a head at least as new as the batch's, and each of its
  passages is stored or belongs to a version older than the head.
- I2: the applied set, the clock and every head only grow, and change in one transaction with the rows.
- The applied set is published (`committed`) only after the transaction is durable, together with the view.
- A batch is applied only when the batches it depends on are, so a head never arrives before its passages.
- The epoch is raised only by a fence or by a record that was read, in a transaction of its own place in the writer's
  order: what was accepted before it is in the set that a fence answers with, and nothing of an older epoch follows.
- What is forgotten (an operation, a tombstone) is in a stable cut: every member has applied it. New batches as old as
  anything forgotten are refused (the floor), and a peer's state is merged only if the peer had applied all that is
  forgotten here: otherwise it may show what a forgotten tombstone deleted.
- The live rows are a function of the applied set alone: equal sets mean equal rows, and a session that saw a row holds
  a token that demands it. A pull therefore never ships a head without covering the batch that wrote it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from services.quorum.clock import Version, physical_ms
from services.quorum.gtid import Gtid, GtidSet
from services.quorum.rows import DocumentState, HeadRow, Op, PassageRow, PullBundle, WriteBatch
from services.quorum.status import ReplicaStatus

OPS_MAX = 1_024
"""Batches in one bundle of a pull, about: the asker gives a peer up that sends nothing for a few seconds."""


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

    def ops_of_version(self, version: Version, document_id: str) -> list[Gtid]:
        """The applied batches that wrote this version of a document."""

    def applied(self) -> tuple[GtidSet, int]:
        """The applied set and the clock of the state that is read."""


class ForgettableRows(ReplicaRows, Protocol):
    """Rows that can be listed whole."""

    def heads_of_all(self) -> Iterator[HeadRow]:
        """Every head, tombstones included."""

    def ops_of_all(self) -> Iterator[Op]:
        """Every operation that is not forgotten."""

    def forgotten(self) -> Forgotten:
        """What is forgotten in the state that is read."""


class ReplicaStore(ReplicaRows, Protocol):
    """A replica's rows, inside a transaction that the caller opened."""

    def damaged(self, document_ids: Sequence[str]) -> bool:
        """Whether the head of any of these documents cannot be read."""

    def conflicts(self, batch: WriteBatch) -> bool:
        """Whether rows of this very version are stored with other content."""

    def put_head(self, head: HeadRow) -> None:
        """Replace the head; passages of older versions are superseded and those of this version become live."""

    def put_passages(self, rows: Sequence[PassageRow]) -> None:
        """Add immutable passages; live at once if the head has their version.

        Of two of one name with other content the same one must stay on every replica, whatever the order.
        """

    def put_op(self, op: Op) -> None:
        """Remember an applied batch; idempotent."""

    def put_state(self, applied_added: GtidSet, hlc_max: int) -> None:
        """Extend the applied set and raise the clock."""

    def put_epoch(self, epoch: int, frozen: bool) -> None:
        """Remember which epoch this replica is in, and whether it is frozen there."""


class ForgettingStore(ReplicaStore, Protocol):
    """A store that can drop what every member has applied."""

    def oldest_ops(self, hlc: int, among: GtidSet, limit: int) -> list[Op]:
        """Some of the operations `among` these with a version of at most this clock reading."""

    def drop_op(self, op: Op) -> None:
        """Forget an operation."""

    def drop_staged(self, document_id: str, version: Version) -> None:
        """Forget passages of a version whose head never arrived, or arrived and was replaced."""

    def drop_tombstone(self, document_id: str) -> None:
        """Forget the head of a deleted document."""

    def put_forgotten(self, added: GtidSet, floor: Version) -> None:
        """Remember which applied batches have no operation any more, and the newest version among them."""


@dataclass(frozen=True, slots=True)
class Forgotten:
    """What a replica has forgotten: which batches, and the newest version among them."""

    gtids: GtidSet = GtidSet.EMPTY
    floor: Version = Version.ZERO


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
    """The protocol state of one replica: its epoch, applied set and clock.

    `epoch`, `frozen`: as stored when it was opened, or of the record that was read then if that is newer.
    """

    def __init__(
        self,
        replica_id: str,
        epoch: int,
        applied: GtidSet,
        hlc_max: int,
        limits: ReplicaLimits | None = None,
        frozen: bool = False,
        forgotten: Forgotten | None = None,
    ) -> None:
        self.replica_id = replica_id
        self._forgotten = forgotten or Forgotten()
        self._forgotten_staged = self._forgotten
        self._place = (epoch, frozen)
        self._place_staged = self._place
        self._limits = limits or ReplicaLimits()
        self._published = (applied, hlc_max)
        self._staged = self._published

    @property
    def epoch(self) -> int:
        """The epoch this replica is durably in."""
        return self._place[0]

    @property
    def frozen(self) -> bool:
        """Whether it refuses quorum reads and writes until it has read a newer record. Repair goes on."""
        return self._place[1]

    @property
    def voting_epoch(self) -> int:
        """The epoch whose quorums this replica answers for; 0 while it is frozen."""
        epoch, frozen = self._place
        return 0 if frozen else epoch

    @property
    def applied(self) -> GtidSet:
        """The published applied set: durable and in the view. One reference, safe to read from any thread."""
        return self._published[0]

    @property
    def hlc_max(self) -> int:
        """The highest clock reading among published writes."""
        return self._published[1]

    @property
    def forgotten(self) -> Forgotten:
        """What has no operation here any more."""
        return self._forgotten

    def missing(self, require: GtidSet) -> GtidSet:
        """What of `require` is not applied here."""
        return require.difference(self.applied)

    def summary(self, epoch: int) -> Summary:
        """The answer to a summary round of a caller whose topology has this epoch."""
        applied, hlc_max = self._published
        return Summary(self.replica_id, self.epoch_status(epoch), applied, hlc_max, self.epoch)

    def epoch_status(self, epoch: int) -> ReplicaStatus:
        """Whether a quorum request of this epoch may be served.

        A greater epoch is not believed on sight: whoever names it may know of members that this replica does not.
        """
        return _status_in(self._place, epoch)

    def fence(self, epoch: int, store: ReplicaStore) -> ReplicaStatus:
        """Freeze at `epoch`, inside a transaction; staged until `committed`, and only then to be answered.

        The applied set published with it, or later, holds all that was accepted in older epochs. Refused if this
        replica is in a newer epoch (STALE_EPOCH) or active in this very one (INVALID).
        """
        held, frozen = self._place_staged
        if epoch < held:
            return ReplicaStatus.STALE_EPOCH
        if epoch == held:
            return ReplicaStatus.OK if frozen else ReplicaStatus.INVALID
        self._move(epoch, True, store)
        return ReplicaStatus.OK

    def learn(self, epoch: int, frozen: bool, store: ReplicaStore) -> bool:
        """Take over the epoch of a topology record that was read, inside a transaction; False if it is not newer."""
        if epoch <= self._place_staged[0]:
            return False
        self._move(epoch, frozen, store)
        return True

    def admit(self, batch: WriteBatch, epoch: int, now_ms: int) -> ReplicaStatus:
        """Whether a batch is worth queueing; the answer is checked again inside the transaction."""
        return self._check(batch, self.epoch_status(epoch), now_ms, self.applied)

    def apply(self, batches: Sequence[tuple[WriteBatch, int]], now_ms: int, store: ReplicaStore) -> list[ReplicaStatus]:
        """Apply (batch, epoch) pairs in order inside one transaction; refused ones change nothing.

        The new applied set is staged until `committed`. A row that loses to a newer head still counts as applied: it
        is ordered before a concurrent winner.
        """
        applied, hlc_max = self._staged
        before = applied
        answers: list[ReplicaStatus] = []
        for batch, epoch in batches:
            status = self._check(batch, _status_in(self._place_staged, epoch), now_ms, applied)
            if status is ReplicaStatus.OK:
                status = self._against_rows(batch, applied, store)
            answers.append(status)
            if status is ReplicaStatus.OK and batch.gtid not in applied:
                self._write(batch, store)
                applied = applied.add(batch.gtid)
                hlc_max = max(hlc_max, batch.version.hlc)
        self._stage(applied, hlc_max, before, store)
        return answers

    def merge(self, bundle: PullBundle, store: ReplicaStore) -> bool:
        """Merge a peer's state inside one transaction; idempotent, order-free. Staged until `committed`.

        False, nothing changed: the peer had not applied all that is forgotten here when it made the bundle.
        """
        if not bundle.as_of.issuperset(self._forgotten_staged.gtids):
            return False
        applied, hlc_max = self._staged
        wrote = {(op.version, document_id) for op in bundle.ops for document_id in op.document_ids}
        for document in bundle.documents:
            if not self._is_forgotten(document.head, wrote, store):
                self._merge_document(document, store)
        self._put_newer(bundle.staged, store)
        for op in bundle.ops:
            store.put_op(op)
        versions = [bundle.hlc_max, hlc_max, *(document.head.version.hlc for document in bundle.documents)]
        self._stage(applied.union(bundle.covers), max(versions), applied, store)
        return True

    def forget(self, cut: GtidSet, epoch: int, hlc: int, store: ForgettingStore, ops_max: int = 256) -> int:
        """Forget some operations of `cut` up to this clock reading, and the tombstones they left, in a transaction.

        `cut`: a `StableCut` of `epoch`; in another epoch, or frozen, it means nothing. Returns how many.
        """
        if _status_in(self._place_staged, epoch) is not ReplicaStatus.OK:
            return 0
        ops = store.oldest_ops(hlc, cut.difference(self._forgotten_staged.gtids), ops_max)
        for op in ops:
            self._drop(op, store)
        self._stage_forgotten(GtidSet.of(*(op.gtid for op in ops)), store, *(op.version for op in ops))
        return len(ops)

    def state(self, store: ForgettableRows, documents_max: int = 256) -> Iterator[PullBundle]:
        """The whole state, for a replica that began empty and asks for what is forgotten here.

        Only the last bundle covers anything. `store` must be one committed state, as for `pull`.
        """
        applied, hlc_max = store.applied()
        heads: list[HeadRow] = []
        for head in store.heads_of_all():
            heads.append(head)
            if len(heads) == documents_max:
                yield PullBundle(GtidSet.EMPTY, _documents(heads, store), (), (), hlc_max, applied)
                heads = []
        ops = tuple(store.ops_of_all())
        staged = tuple(row for op in ops for row in store.staged_passages(op))
        forgotten = store.forgotten()
        yield PullBundle(
            applied, _documents(heads, store), staged, ops, hlc_max, applied, forgotten.gtids, forgotten.floor
        )

    def install(self, bundles: Sequence[PullBundle], store: ForgettingStore) -> bool:
        """Merge a peer's whole state inside one transaction, into a replica that began empty; as `merge`."""
        *_, last = bundles
        if not all(self.merge(bundle, store) for bundle in bundles):
            return False
        for gtid in last.forgotten:
            op = store.op(gtid)
            if op is not None:
                self._drop(op, store)
        self._stage_forgotten(last.forgotten, store, last.floor)
        return True

    def committed(self) -> None:
        """The transaction is durable: publish what it staged, together with the view."""
        assert self._staged[0].issuperset(self._published[0])
        assert self._place_staged[0] >= self._place[0]
        self._published = self._staged
        self._place = self._place_staged
        self._forgotten = self._forgotten_staged

    def aborted(self) -> None:
        """The transaction was rolled back: forget what it staged."""
        self._staged = self._published
        self._place_staged = self._place
        self._forgotten_staged = self._forgotten

    def pull(
        self, want: GtidSet, store: ReplicaRows, documents_max: int = 256, have: GtidSet = GtidSet.EMPTY
    ) -> Iterator[PullBundle]:
        """What this replica has of `want`, as self-contained bundles of about `documents_max` documents and OPS_MAX
        batches: few documents may have been written by very many.

        `store` must be one committed state, at least as new as the published one. A batch whose documents were
        replaced since is answered with their current state, never with a head without its passages; the batches that
        replaced them are then covered too, with all their documents, unless the asker says it has them (`have`).
        """
        applied, hlc_max = store.applied()
        bundle = _Closure(store, applied, have)
        forgotten = want.intersection(self._forgotten.gtids)
        covered = forgotten
        for gtid in want.intersection(applied):
            if gtid in covered:
                continue
            bundle.add(gtid)
            if len(bundle.documents) >= documents_max or len(bundle.ops) >= OPS_MAX:
                yield bundle.build(hlc_max)
                covered = covered.union(GtidSet.of(*bundle.ops))
                bundle = _Closure(store, applied, have)
        if bundle.ops or forgotten:
            yield replace(bundle.build(hlc_max), forgotten=forgotten)

    def _check(self, batch: WriteBatch, status: ReplicaStatus, now_ms: int, applied: GtidSet) -> ReplicaStatus:
        if status is not ReplicaStatus.OK or batch.gtid in applied:
            return status
        at_ms = physical_ms(batch.version.hlc)
        if at_ms < now_ms - self._limits.write_age_ms or batch.version <= self._forgotten_staged.floor:
            return ReplicaStatus.TOO_OLD
        if at_ms > now_ms + self._limits.clock_skew_ms:
            return ReplicaStatus.CLOCK_SKEW
        if not applied.issuperset(batch.depends):
            return ReplicaStatus.MISSING_DEPENDENCY
        return ReplicaStatus.OK

    def _against_rows(self, batch: WriteBatch, applied: GtidSet, store: ReplicaStore) -> ReplicaStatus:
        """A name that stands for other content already is INVALID; a document that cannot be read is FAILED."""
        if batch.gtid in applied:
            op = store.op(batch.gtid)
            if op is not None and op.content:
                return ReplicaStatus.OK if op.content == batch.content() else ReplicaStatus.INVALID
        if store.damaged(batch.document_ids()):
            return ReplicaStatus.FAILED
        return ReplicaStatus.INVALID if store.conflicts(batch) else ReplicaStatus.OK

    def _write(self, batch: WriteBatch, store: ReplicaStore) -> None:
        self._put_newer(batch.passages, store)
        for head in batch.heads:
            assert head.version == batch.version
            if _replaces(head, store.head(head.document_id)):
                store.put_head(head)
        store.put_op(Op(batch.gtid, batch.version, batch.document_ids(), batch.content(), batch.keys))

    def _is_forgotten(self, head: HeadRow, wrote: set[tuple[Version, str]], store: ReplicaStore) -> bool:
        """Whether this is a tombstone that nothing known here wrote any more: it would be kept for ever."""
        return (
            not head.passages
            and head.version <= self._forgotten_staged.floor
            and (head.version, head.document_id) not in wrote
            and store.head(head.document_id) is None
            and not store.ops_of_version(head.version, head.document_id)
        )

    def _merge_document(self, document: DocumentState, store: ReplicaStore) -> None:
        head = document.head
        assert len(document.passages) == head.passages, "a pulled document is whole"
        current = store.head(head.document_id)
        if current is not None and current.version > head.version:
            return
        store.put_passages(document.passages)
        if _replaces(head, current):
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

    def _drop(self, op: Op, store: ForgettingStore) -> None:
        """Forget an operation. What it wrote is kept as long as another operation of the same version, which may be
        asked for: a tombstone, and passages whose head has not arrived."""
        store.drop_op(op)
        for document_id in op.document_ids:
            if store.ops_of_version(op.version, document_id):
                continue
            head = store.head(document_id)
            if head is None or head.version != op.version:
                store.drop_staged(document_id, op.version)
            elif not head.passages:
                store.drop_tombstone(document_id)

    def _stage_forgotten(self, added: GtidSet, store: ForgettingStore, *versions: Version) -> None:
        if added:
            floor = max(self._forgotten_staged.floor, *versions)
            self._forgotten_staged = Forgotten(self._forgotten_staged.gtids.union(added), floor)
            store.put_forgotten(added, floor)

    def _move(self, epoch: int, frozen: bool, store: ReplicaStore) -> None:
        store.put_epoch(epoch, frozen)
        self._place_staged = (epoch, frozen)

    def _stage(self, applied: GtidSet, hlc_max: int, before: GtidSet, store: ReplicaStore) -> None:
        added = applied.difference(before)
        if added or hlc_max > self._staged[1]:
            store.put_state(added, hlc_max)
        self._staged = (applied, hlc_max)


def _status_in(place: tuple[int, bool], epoch: int) -> ReplicaStatus:
    """What a replica in that epoch, frozen or not, says to a quorum request of `epoch`."""
    held, frozen = place
    if epoch < held:
        return ReplicaStatus.STALE_EPOCH
    return ReplicaStatus.STALE_TOPOLOGY if epoch > held or frozen else ReplicaStatus.OK


def _replaces(head: HeadRow, current: HeadRow | None) -> bool:
    """Whether `head` takes the place of `current`. One version has one count, unless a sender broke that rule on
    replicas that could not know of each other; then the greater count wins on all of them."""
    return current is None or (head.version, head.passages) > (current.version, current.passages)


def _documents(heads: Sequence[HeadRow], store: ReplicaRows) -> tuple[DocumentState, ...]:
    return tuple(DocumentState(head, tuple(store.live_passages(head.document_id))) for head in heads)


class _Closure:
    """Batches with the current state of every document they touch, and the batches which that state shows."""

    def __init__(self, store: ReplicaRows, applied: GtidSet, have: GtidSet) -> None:
        self._store = store
        self._applied = applied
        self._have = have
        self.ops: dict[Gtid, Op] = {}
        self.documents: dict[str, DocumentState | None] = {}

    def add(self, gtid: Gtid) -> None:
        """Cover an applied batch."""
        open_ = [gtid]
        while open_:
            gtid = open_.pop()
            op = None if gtid in self.ops else self._store.op(gtid)
            if op is None:
                continue
            self.ops[gtid] = op
            for document_id in op.document_ids:
                if document_id not in self.documents:
                    open_ += self._read(document_id)

    def build(self, hlc_max: int) -> PullBundle:
        """The bundle of everything added."""
        return PullBundle(
            as_of=self._applied,
            covers=GtidSet.of(*self.ops),
            documents=tuple(document for document in self.documents.values() if document is not None),
            staged=tuple(row for op in self.ops.values() for row in self._store.staged_passages(op)),
            ops=tuple(self.ops.values()),
            hlc_max=hlc_max,
        )

    def _read(self, document_id: str) -> list[Gtid]:
        """Take up a document; returns the batches that the asker must be given with it."""
        head = self._store.head(document_id)
        if head is None:
            self.documents[document_id] = None
            return []
        self.documents[document_id] = DocumentState(head, tuple(self._store.live_passages(document_id)))
        wrote = self._store.ops_of_version(head.version, document_id)
        return [gtid for gtid in wrote if gtid in self._applied and gtid not in self._have]
