"""A shard process around the production `ReplicaCore`: a writer with a slow disk, immutable views, gossip, pulls."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from heapq import nsmallest

from services.quorum.clock import Version
from services.quorum.gtid import GtidSet
from services.quorum.replica import ReplicaCore
from services.quorum.rows import PassageRow, PullBundle, WriteBatch
from services.quorum.status import ReplicaStatus
from tests.simulation.checker import rank
from tests.simulation.history import FinalReplica, History, Hit, LiveState
from tests.simulation.memory_store import DurableRows, Transaction
from tests.simulation.network import Host, Network
from tests.simulation.timeline import MS, Timeline

EPOCH = 1
START_MS = 1_700_000_000_000
"""The wall clock when a simulation begins."""
GOSSIP_US = 60 * MS
SETTLE_US = 10 * MS
CALL_US = 60 * MS
BATCHES_PER_COMMIT = 8
DOCUMENTS_PER_BUNDLE = 2
BACKLOG_MAX = 16
"""Bundles waiting for the writer; production awaits each merge before it reads on."""

Live = Mapping[str, tuple[Version, tuple[PassageRow, ...]]]
Answer = Callable[[ReplicaStatus], None]
Found = tuple[ReplicaStatus, GtidSet, int, tuple[Hit, ...]]


@dataclass(frozen=True, slots=True)
class View:
    """What searches see: the applied set and the live rows of one committed state."""

    applied: GtidSet
    live: Live


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


class SimReplica(Host):
    """One voter. Subclasses in `mutants` break single steps."""

    def __init__(self, name: str, timeline: Timeline, network: Network, history: History) -> None:
        super().__init__(name)
        self.timeline = timeline
        self.network = network
        self.history = history
        self.peers: dict[str, SimReplica] = {}
        self.durable = DurableRows()
        self.commit_us = (400, 2_500)
        self.start()

    def start(self) -> None:
        """Begin a life with what the disk holds."""
        self.up = True
        self.core = self.new_core()
        self.view = View(self.core.applied, self._live({}, self.durable.heads, self.durable))
        self._queue: deque[PendingWrite | PullBundle] = deque()
        self._busy = False
        self._waiting: list[tuple[Query, Callable[[Found], None]]] = []
        self.later(self.timeline.random.randrange(GOSSIP_US), self._gossip)

    def new_core(self) -> ReplicaCore:
        """The protocol state that the disk describes."""
        return ReplicaCore(self.name, EPOCH, self.durable.applied_set, self.durable.hlc_max)

    def later(self, delay_us: int, action: Callable[[], None]) -> None:
        """Run `action` unless this life has ended by then."""
        life = self.life
        self.timeline.after(delay_us, lambda: action() if self.life == life else None)

    def now_ms(self) -> int:
        return START_MS + self.timeline.now_us // MS

    # Writing.

    def on_write(self, batch: WriteBatch, epoch: int, answer: Answer) -> None:
        """A batch arrives."""
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

    def write(
        self, jobs: Sequence[PendingWrite | PullBundle], transaction: Transaction
    ) -> list[tuple[Answer, ReplicaStatus]]:
        """Run the jobs inside the transaction."""
        answers = []
        for job in jobs:
            if isinstance(job, PullBundle):
                self.core.merge(job, transaction)
            else:
                (status,) = self.core.apply([(job.batch, job.epoch)], self.now_ms(), transaction)
                answers.append((job.answer, status))
        return answers

    def commit(self, transaction: Transaction, answers: Sequence[tuple[Answer, ReplicaStatus]]) -> None:
        """The disk has synced; the view follows a moment later."""
        transaction.commit()
        self.later(self.timeline.random.randint(20, 300), lambda: self.publish(transaction, answers))

    def publish(self, transaction: Transaction, answers: Sequence[tuple[Answer, ReplicaStatus]]) -> None:
        """The new state is visible; only now is anything acknowledged."""
        self.core.committed()
        self.show(View(self.core.applied, self._live(self.view.live, transaction.touched, self.durable)))
        self._busy = False
        for answer, status in answers:
            answer(status)
        self._work()

    def show(self, view: View) -> None:
        """Replace the view and serve the searches that waited for it."""
        self.view = view
        states = self.history.views.setdefault(view.applied.digest(), {})
        states.setdefault(self.live_state(), self.name)
        waiting, self._waiting = self._waiting, []
        for query, answer in waiting:
            if view.applied.issuperset(query.require):
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
        return FinalReplica(self.name, self.core.applied.digest(), heads, self.live_state())

    # Searching.

    def on_search(self, query: Query, answer: Callable[[Found], None]) -> None:
        """A search arrives: answered from one view that contains `require`, after waiting and pulling for it."""
        if self.view.applied.issuperset(query.require):
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
            answer((ReplicaStatus.NOT_COVERED, self.view.applied, self.core.hlc_max, ()))

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
        delay_us = self.timeline.random.randint(100, 1_500)
        self.later(delay_us, lambda: answer((ReplicaStatus.OK, self.announced(view), hlc_max, found)))

    def announced(self, view: View) -> GtidSet:
        """The applied set that goes with an answer: that of the view it was read from."""
        return view.applied

    # Repair.

    def pull(self, peer: str, want: GtidSet) -> None:
        """Ask a peer for batches; what comes is merged as it arrives. A backlog is worked off first."""
        if sum(isinstance(job, PullBundle) for job in self._queue) > BACKLOG_MAX:
            return
        target, life = self.peers[peer], self.life
        have = self.core.applied

        def deliver(bundle: PullBundle) -> None:
            if self.life == life:
                self.on_bundle(bundle)

        def serve() -> None:
            for bundle in target.bundles(want, have):
                self.network.send(target, self, lambda bundle=bundle: deliver(bundle))  # type: ignore[misc]

        self.network.send(self, target, serve)

    def bundles(self, want: GtidSet, have: GtidSet) -> list[PullBundle]:
        """What this replica sends for a pull."""
        return list(self.core.pull(want, self.durable, DOCUMENTS_PER_BUNDLE, have))

    def _gossip(self) -> None:
        random = self.timeline.random
        peer = random.choice(sorted(self.peers))

        def heard(theirs: GtidSet | None) -> None:
            if theirs is not None and theirs.difference(self.core.applied):
                self.later(SETTLE_US, lambda: self._catch_up(peer, theirs))

        target = self.peers[peer]
        self.network.call(self, target, lambda reply: reply(target.core.applied), heard, CALL_US)
        self.later(int(GOSSIP_US * (0.75 + random.random() / 2)), self._gossip)

    def _catch_up(self, peer: str, theirs: GtidSet) -> None:
        missing = theirs.difference(self.core.applied)
        if missing:
            self.pull(peer, missing)
