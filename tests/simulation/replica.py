"""A shard process around the production `ReplicaCore`: a writer with a slow disk, immutable views, gossip, pulls."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from heapq import nsmallest

from services.quorum.clock import Version, pack
from services.quorum.gtid import GtidSet
from services.quorum.replica import ReplicaCore, ReplicaLimits, Summary
from services.quorum.rows import PassageRow, PullBundle, WriteBatch
from services.quorum.shard_record import ShardRecord, ShardState
from services.quorum.stable_cut import StableCut
from services.quorum.status import ReplicaStatus
from tests.simulation.checker import rank
from tests.simulation.history import FinalReplica, History, Hit, LiveState
from tests.simulation.memory_store import DurableRows, Transaction
from tests.simulation.network import Host, Network
from tests.simulation.record_store import RecordFollower, RecordStore
from tests.simulation.timeline import MS, Timeline

EPOCH = 1
START_MS = 1_700_000_000_000
"""The wall clock when a simulation begins."""
GOSSIP_US = 60 * MS
SETTLE_US = 10 * MS
CALL_US = 60 * MS
BATCHES_PER_COMMIT = 8
DOCUMENTS_PER_BUNDLE = 2
COVER_US = 10 * MS
COVER_TRIES = 5
KEEP_MS = 100
"""How old an operation must be to be forgotten: so little that only the cut and the floor protect anything."""
FORGET_OPS = 6
LIMITS = ReplicaLimits()
BACKLOG_MAX = 16
"""Bundles waiting for the writer; production awaits each merge before it reads on."""

Live = Mapping[str, tuple[Version, tuple[PassageRow, ...]]]
Answer = Callable[[ReplicaStatus], None]


@dataclass(frozen=True, slots=True)
class Found:
    """What a search brought: the hits, and of the view they were read from the applied set, the clock and the epoch."""

    status: ReplicaStatus
    applied: GtidSet
    hlc_max: int
    hits: tuple[Hit, ...]
    epoch: int
    batches: GtidSet = GtidSet.EMPTY
    """Of a lookup: the batches that wrote what was found, as far as they are remembered."""


@dataclass(frozen=True, slots=True)
class View:
    """What searches see: the applied set, the epoch and the live rows of one committed state."""

    applied: GtidSet
    live: Live
    epoch: int = EPOCH


@dataclass(frozen=True, slots=True)
class Query:
    """A search as it reaches a replica."""

    query: int
    k: int
    require: GtidSet
    holders: tuple[str, ...]
    wait_us: int
    only: str | None = None


@dataclass(frozen=True, slots=True)
class PendingWrite:
    """A batch waiting for the writer."""

    batch: WriteBatch
    epoch: int
    answer: Answer


@dataclass(frozen=True, slots=True)
class PendingFence:
    """A fence waiting for the writer."""

    epoch: int
    answer: Answer


@dataclass(frozen=True, slots=True)
class PendingForget:
    """Operations that every member has applied, waiting to be forgotten."""

    cut: GtidSet
    epoch: int


@dataclass(frozen=True, slots=True)
class WholeState:
    """A peer's whole state, waiting for the writer."""

    bundles: tuple[PullBundle, ...]


@dataclass(frozen=True, slots=True)
class Declaration:
    """A replica's answer to gossip. `joined`: it shows nothing without the batch that wrote it."""

    applied: GtidSet
    epoch: int
    joined: bool


Job = PendingWrite | PendingFence | PendingForget | ShardRecord | PullBundle | WholeState
"""What the writer does, in order; a record is learned."""


class SimReplica(Host):
    """One replica. Subclasses in `mutants` break single steps."""

    core_type: type[ReplicaCore] = ReplicaCore

    def __init__(self, name: str, timeline: Timeline, network: Network, history: History) -> None:
        super().__init__(name)
        self.timeline = timeline
        self.network = network
        self.history = history
        self.peers: dict[str, SimReplica] = {}
        self.durable = DurableRows()
        self.commit_us = (400, 2_500)
        self.gone = False
        """Its disk is lost, or it was told that it is no member any more: it never starts again."""
        self.tear = False
        """Crash at the next commit, before or after it."""
        self.joined = True
        """False until a replica that came later has all that its peers might have forgotten; it shows nothing then."""
        self.restored = False
        """Began with the rows of a snapshot."""
        self._follower: RecordFollower | None = None
        self._cut = StableCut(0, ())
        self.start()

    def follow(self, store: RecordStore, record: ShardRecord, world: Mapping[str, SimReplica]) -> None:
        """Know the shard's record and keep asking for newer ones; peers are its members, found in `world`."""
        self._follower = RecordFollower(self, self.timeline, self.network, store, record, self.on_record)
        self._world = world
        self._load()
        self._meet()
        self._follower.watch()

    def start(self) -> None:
        """Begin a life with what the disk holds."""
        self.up = True
        self._load()
        if self._follower is not None:
            self._follower.watch()
        self._queue: deque[Job] = deque()
        self._busy = False
        self._waiting: list[tuple[Query, Callable[[Found], None]]] = []
        self.later(self.timeline.random.randrange(GOSSIP_US), self._gossip)

    def _load(self) -> None:
        self.core = self.new_core()
        self.view = View(self.core.applied, self._live({}, self.durable.heads, self.durable), self.core.epoch)

    def new_core(self) -> ReplicaCore:
        """The protocol state that the disk describes, or a newer record."""
        place = (EPOCH, False)
        if self._follower is not None:
            record = self._follower.record
            place = (record.epoch, record.state is ShardState.FROZEN)
        epoch, frozen = max(place, self.durable.epoch or place)
        rows = self.durable
        return self.core_type(
            self.name, epoch, rows.applied_set, rows.hlc_max, LIMITS, frozen=frozen, forgotten=rows.lost
        )

    # Membership.

    def on_summary(self, epoch: int) -> Summary:
        """The answer in a summary round; who names a newer epoch has read a newer record."""
        if epoch > self.core.epoch:
            self.refresh()
        return self.core.summary(epoch)

    def refresh(self) -> None:
        """Ask for the record now rather than at the next turn."""
        if self._follower is not None:
            self._follower.ask()

    def told(self, record: ShardRecord) -> None:
        """Read this record now."""
        assert self._follower is not None
        self._follower.told(record)

    def on_record(self, record: ShardRecord) -> None:
        """A newer record was read."""
        if self.name not in self.known_ids():
            self.gone = True
            self.die()
            return
        self._meet()
        self._queue.append(record)
        self._work()

    def on_fence(self, epoch: int, answer: Callable[[tuple[ReplicaStatus, GtidSet]], None]) -> None:
        """A controller ends the older epochs here; answered once that is durable."""
        self._queue.append(PendingFence(epoch, lambda status: answer((status, self.core.applied))))
        self._work()

    def on_catch_up(self, require: GtidSet, holders: Sequence[str], answer: Callable[[GtidSet], None]) -> None:
        """A controller wants `require` here; answered with what is here now."""
        missing = self.core.missing(require)
        if missing:
            for holder in holders:
                if holder in self.peers:
                    self.pull(holder, missing)
        else:
            self.joined = True
        answer(self.core.applied)

    def _meet(self) -> None:
        self.peers = {name: self._world[name] for name in sorted(self.known_ids()) if name != self.name}

    def known_ids(self) -> frozenset[str]:
        """Every member that the record known here names, coming ones included."""
        if self._follower is None:
            return frozenset(self.peers)
        record = self._follower.record
        return record.members.ids() | (record.proposed.ids() if record.proposed else frozenset())

    def later(self, delay_us: int, action: Callable[[], None]) -> None:
        """Run `action` unless this life has ended by then."""
        life = self.life
        self.timeline.after(delay_us, lambda: action() if self.life == life else None)

    def now_ms(self) -> int:
        return START_MS + self.timeline.now_us // MS

    # Writing.

    def on_write(self, batch: WriteBatch, epoch: int, answer: Answer) -> None:
        """A batch arrives."""
        if epoch > self.core.epoch:
            self.refresh()
        status = self.core.admit(batch, epoch, self.now_ms())
        if status is ReplicaStatus.MISSING_DEPENDENCY:
            for peer in self.peers:
                self.pull(peer, self.core.missing(batch.depends))
        if status is not ReplicaStatus.OK:
            answer(status)
            return
        self._queue.append(PendingWrite(batch, epoch, answer))
        self._work()

    def on_bundle(self, bundle: PullBundle) -> None:
        """A peer's state arrives."""
        self._queue.append(bundle)
        self._work()

    def _work(self) -> None:
        if self._busy or not self._queue:
            return
        self._busy = True
        jobs = [self._queue.popleft() for _ in range(min(len(self._queue), BATCHES_PER_COMMIT))]
        transaction = Transaction(self.durable)
        answers = self.write(jobs, transaction)
        low, high = self.commit_us
        self.later(self.timeline.random.randint(low, high), lambda: self.commit(transaction, answers))

    def write(self, jobs: Sequence[Job], transaction: Transaction) -> list[tuple[Answer, ReplicaStatus]]:
        """Run the jobs inside the transaction."""
        answers = []
        for job in jobs:
            if isinstance(job, PullBundle):
                self.core.merge(job, transaction)
            elif isinstance(job, ShardRecord):
                self.core.learn(job.epoch, job.state is ShardState.FROZEN, transaction)
            elif isinstance(job, PendingFence):
                answers.append((job.answer, self.core.fence(job.epoch, transaction)))
            elif isinstance(job, PendingForget):
                oldest = pack(self.now_ms() - KEEP_MS)
                self.core.forget(job.cut, job.epoch, oldest, transaction, FORGET_OPS)
            elif isinstance(job, WholeState):
                self.core.install(job.bundles, transaction)
            else:
                (status,) = self.core.apply([(job.batch, job.epoch)], self.now_ms(), transaction)
                answers.append((job.answer, status))
        return answers

    def commit(self, transaction: Transaction, answers: Sequence[tuple[Answer, ReplicaStatus]]) -> None:
        """The disk has synced; the view follows a moment later."""
        if self.tear:
            self.tear = False
            if self.timeline.random.random() < 0.5:
                transaction.commit()
            self.die()
            return
        transaction.commit()
        self.later(self.timeline.random.randint(20, 300), lambda: self.publish(transaction, answers))

    def publish(self, transaction: Transaction, answers: Sequence[tuple[Answer, ReplicaStatus]]) -> None:
        """The new state is visible; only now is anything acknowledged."""
        self.core.committed()
        self.show(
            View(self.core.applied, self._live(self.view.live, transaction.touched, self.durable), self.core.epoch)
        )
        self._busy = False
        for answer, status in answers:
            answer(status)
        self._work()

    def show(self, view: View) -> None:
        """Replace the view and serve the searches that waited for it."""
        self.view = view
        if self.joined:
            states = self.history.views.setdefault(view.applied.digest(), {})
            states.setdefault(self.live_state(), self.name)
        waiting, self._waiting = self._waiting, []
        for query, answer in waiting:
            if self.joined and view.applied.issuperset(query.require):
                self._search(query, answer)
            else:
                self._waiting.append((query, answer))

    @staticmethod
    def _live(before: Live, changed: Mapping[str, object], rows: DurableRows) -> Live:
        live = dict(before)
        for document_id in changed:
            head = rows.head(document_id)
            if head is not None:
                live[document_id] = (head.version, tuple(rows.live_passages(document_id)))
        return live

    def live_state(self) -> LiveState:
        """Every live document with its contents."""
        return frozenset(
            (document_id, version, tuple(row.vector for row in rows))
            for document_id, (version, rows) in self.view.live.items()
            if rows
        )

    def final(self) -> FinalReplica:
        """What the checker compares after healing."""
        heads = {document_id: head.version for document_id, head in self.durable.heads.items()}
        floor = self.durable.lost.floor
        return FinalReplica(self.name, self.core.applied.digest(), heads, self.live_state(), floor)

    # Searching.

    def on_search(self, query: Query, answer: Callable[[Found], None]) -> None:
        """A search arrives: answered from one view that contains `require`, after waiting and pulling for it."""
        if self.joined and self.view.applied.issuperset(query.require):
            self._search(query, answer)
            return
        self._waiting.append((query, answer))
        self.later(query.wait_us // 3, lambda: self._fetch(query))
        self.later(query.wait_us, lambda: self._give_up(query, answer))

    def _fetch(self, query: Query) -> None:
        missing = self.core.missing(query.require)
        if missing:
            for node in query.holders:
                if node in self.peers:
                    self.pull(node, missing)

    def _give_up(self, query: Query, answer: Callable[[Found], None]) -> None:
        entry = (query, answer)
        if entry in self._waiting:
            self._waiting.remove(entry)
            answer(Found(ReplicaStatus.NOT_COVERED, self.view.applied, self.core.hlc_max, (), self.view.epoch))

    def _search(self, query: Query, answer: Callable[[Found], None]) -> None:
        view, hlc_max = self.view, self.core.hlc_max
        hits = nsmallest(
            query.k,
            (
                (rank(query.query, row.document_id, row.ordinal, row.vector), row)
                for document_id, (_, rows) in view.live.items()
                if query.only in (None, document_id)
                for row in rows
            ),
            key=lambda ranked: ranked[0],
        )
        found = tuple(Hit(row.document_id, row.ordinal, row.version, row.vector) for _, row in hits)
        batches = GtidSet.EMPTY
        if query.only is not None and query.only in view.live:
            version, _ = view.live[query.only]
            batches = GtidSet.of(*self.durable.ops_of_version(version, query.only))
        delay_us = self.timeline.random.randint(100, 1_500)
        self.later(
            delay_us, lambda: answer(Found(ReplicaStatus.OK, self.announced(view), hlc_max, found, view.epoch, batches))
        )

    def on_cover(self, require: GtidSet, epoch: int, answer: Answer, tries: int = COVER_TRIES) -> None:
        """A reader wants to know that this voter holds `require` durably; it pulls what it lacks."""
        status = self.core.epoch_status(epoch)
        missing = self.core.missing(require)
        if status is not ReplicaStatus.OK or not missing or not tries:
            answer(status if status is not ReplicaStatus.OK or not missing else ReplicaStatus.NOT_COVERED)
            return
        for peer in self.peers:
            self.pull(peer, missing)
        self.later(COVER_US, lambda: self.on_cover(require, epoch, answer, tries - 1))

    def announced(self, view: View) -> GtidSet:
        """The applied set that goes with an answer: that of the view it was read from."""
        return view.applied

    # Repair.

    def pull(self, peer: str, want: GtidSet) -> None:
        """Ask a peer for batches; what comes is merged as it arrives. A backlog is worked off first."""
        if sum(isinstance(job, PullBundle) for job in self._queue) > BACKLOG_MAX or not self.is_member():
            return
        target, life = self.peers[peer], self.life
        have, epoch = self.core.applied, self._known_epoch()

        def deliver(bundle: PullBundle) -> None:
            if self.life == life:
                self.on_bundle(bundle)
                if bundle.forgotten.difference(self.core.applied):
                    self.on_forgotten(target)

        def serve() -> None:
            if target.has_read(epoch):
                for bundle in target.bundles(want, have):
                    self.network.send(target, self, lambda bundle=bundle: deliver(bundle))  # type: ignore[misc]

        self.network.send(self, target, serve)

    def bundles(self, want: GtidSet, have: GtidSet) -> list[PullBundle]:
        """What this replica sends for a pull."""
        return list(self.core.pull(want, self.durable, DOCUMENTS_PER_BUNDLE, have))

    def on_forgotten(self, target: SimReplica) -> None:
        """A peer has forgotten what is missing here. Only one that began empty may take its whole state instead."""
        if self.joined:
            return
        if self.restored:
            self.gone = True
            self.die()
            return
        life, epoch = self.life, self._known_epoch()

        def deliver(bundles: tuple[PullBundle, ...]) -> None:
            if self.life == life and not any(isinstance(job, WholeState) for job in self._queue):
                self._queue.append(WholeState(bundles))
                self._work()

        def serve() -> None:
            if target.has_read(epoch) and target.joined:
                bundles = tuple(target.core.state(target.durable, DOCUMENTS_PER_BUNDLE))
                self.network.send(target, self, lambda: deliver(bundles))

        self.network.send(self, target, serve)

    def is_member(self) -> bool:
        """Whether the record known here names this replica: before that it asks nobody for rows."""
        return self._follower is None or self.name in self.known_ids()

    def has_read(self, epoch: int) -> bool:
        """Whether this replica is in an epoch at least as new; if not, it reads the record now."""
        if epoch > self.core.epoch:
            self.refresh()
        return epoch <= self.core.epoch

    def declares(self) -> Declaration:
        """What this replica tells its peers."""
        return Declaration(self.core.applied, -1 if self.core.frozen else self.core.epoch, self.joined)

    def _known_epoch(self) -> int:
        return EPOCH if self._follower is None else self._follower.record.epoch

    def _gossip(self) -> None:
        random = self.timeline.random
        if not self.peers:
            self.later(GOSSIP_US, self._gossip)
            return
        peer = random.choice(sorted(self.peers))

        def heard(told: Declaration | None) -> None:
            if told is not None:
                self._heard(peer, told)

        target = self.peers[peer]
        self.network.call(self, target, lambda reply: reply(target.declares()), heard, CALL_US)
        self.later(int(GOSSIP_US * (0.75 + random.random() / 2)), self._gossip)

    def _heard(self, peer: str, told: Declaration) -> None:
        if told.applied.difference(self.core.applied):
            self.later(SETTLE_US, lambda: self._catch_up(peer, told.applied))
        elif told.joined and self._follower is not None and self.is_member() and told.epoch >= self._known_epoch():
            self.joined = True
        if self._follower is not None and self.joined:
            self._forget(peer, told)

    def _forget(self, peer: str, told: Declaration) -> None:
        """Note what a member has applied; forget what all of them have, now and then."""
        assert self._follower is not None
        record = self._follower.record
        if record.epoch != self._cut.epoch:
            self._cut = StableCut(record.epoch, (name for name in self.cut_ids() if name != self.name))
        self._cut.heard(peer, told.epoch, told.applied)
        if record.state is ShardState.ACTIVE and record.epoch == self.core.epoch:
            cut = self.forgettable(self._cut)
            if cut.difference(self.core.forgotten.gtids):
                self._queue.append(PendingForget(cut, record.epoch))
                self._work()

    def cut_ids(self) -> frozenset[str]:
        """Who must have applied what is forgotten."""
        return self.known_ids()

    def forgettable(self, cut: StableCut) -> GtidSet:
        """What may be forgotten."""
        return cut.cut(self.core.applied)

    def _catch_up(self, peer: str, theirs: GtidSet) -> None:
        missing = theirs.difference(self.core.applied)
        if missing and peer in self.peers:
            self.pull(peer, missing)
