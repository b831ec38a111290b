"""A cluster that can be searched without being disturbed: shadows of its voters and routers, one set for each rule."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from heapq import nsmallest
from random import Random
from typing import TypeVar

from services.quorum.gtid import GtidSet
from services.quorum.members import Members
from services.quorum.replica import ReplicaCore
from services.quorum.rows import PullBundle
from services.quorum.status import ReplicaStatus
from tests.simulation.checker import rank
from tests.simulation.history import History, Hit
from tests.simulation.memory_store import DurableRows, Transaction
from tests.simulation.network import Host, Network
from tests.simulation.replica import EPOCH, Found, Query, SimReplica, View
from tests.simulation.router import SimRouter
from tests.simulation.timeline import Action, Timeline

Value = TypeVar("Value")
SEARCH_US = (100, 1_500)
"""How long a replica searches; that of `SimReplica`."""
LOOKUP_US = (20, 200)
"""How long it reads a few documents by id."""


class Stream(Timeline):
    """The time of another timeline with chance of its own: what it plans takes nothing from the other's draws."""

    def __init__(self, main: Timeline, seed: str) -> None:
        self.random = Random(seed)
        self._main = main

    @property
    def now_us(self) -> int:
        return self._main.now_us

    @now_us.setter
    def now_us(self, value: int) -> None:
        raise AttributeError("a stream does not set the time")

    def after(self, delay_us: int, action: Action) -> None:
        """Plan `action` on the other timeline; the order of its own actions stays as it is."""
        self._main.after(delay_us, action)

    def run_until(self, end_us: int) -> None:
        """Only the other timeline runs."""
        raise AssertionError("run the timeline that this is a stream of")


class ReadNetwork(Network):
    """Cut and slow where and when another network is; what it loses, doubles and delays it draws itself."""

    def __init__(self, stream: Stream, main: Network) -> None:
        super().__init__(stream)
        self._main = main
        self.cut, self.late_us = main.cut, main.late_us
        self.requests = 0
        """Requests sent, pulls included."""

    def same_climate(self) -> None:
        """Take over how often messages are lost, doubled and delayed."""
        self.lost, self.doubled, self.delayed = self._main.lost, self._main.doubled, self._main.delayed

    def call(
        self,
        source: Host,
        target: Host,
        handle: Callable[[Callable[[Value], None]], None],
        done: Callable[[Value | None], None],
        timeout_us: int,
    ) -> None:
        """A call, counted."""
        self.requests += 1
        super().call(source, target, handle, done, timeout_us)


@dataclass(eq=False, slots=True)
class Waiting:
    """A search whose requirement this voter does not contain yet, and what was pulled for it."""

    query: Query
    answer: Callable[[Found], None]
    bundles: list[PullBundle] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Answer:
    """A search of one view: the hits, and the digest of that very view."""

    digest: bytes
    hits: tuple[Hit, ...]


class ReadReplica(SimReplica):
    """What one rule's searches see of a voter. It lives and dies with it and reads its views, and writes nothing."""

    def __init__(self, origin: SimReplica, stream: Stream, network: ReadNetwork) -> None:
        self.origin = origin
        self.reads = network
        self.searches = 0
        self.required: set[int] = set()
        """Queries that came with a requirement: the first answer did not do."""
        self.waited: set[int] = set()
        """Queries whose requirement was not contained when they came."""
        self.shadows: dict[str, ReadReplica] = {}
        super().__init__(origin.name, stream, network, History())

    def start(self) -> None:
        """The voter has started."""
        self.up = True
        self.durable, self.core, self.view = self.origin.durable, self.origin.core, self.origin.view
        self._open: list[Waiting] = []
        self._digest: bytes | None = None

    def show(self, view: View) -> None:
        """The voter has published a view."""
        self.view, self._digest = view, None
        for waiting in tuple(self._open):
            self._serve(waiting)

    # A search that requires, as Ostraka's.

    def on_search(self, query: Query, answer: Callable[[Found], None]) -> None:
        """Answered from one view that contains `require`, after waiting and pulling for it."""
        if query.require:
            self.required.add(query.query)
        if self.view.applied.issuperset(query.require):
            self._reply(self.view, query, answer)
            return
        self.waited.add(query.query)
        waiting = Waiting(query, answer)
        self._open.append(waiting)
        self.later(query.wait_us // 3, lambda: self._fetch_for(waiting))
        self.later(query.wait_us, lambda: self._refuse(waiting))

    def _reply(self, view: View, query: Query, answer: Callable[[Found], None]) -> None:
        hits, hlc_max = self._top(view, query.query, query.k), self.core.hlc_max
        self._soon(SEARCH_US, lambda: answer(Found(ReplicaStatus.OK, view.applied, hlc_max, hits, view.epoch)))

    def _serve(self, waiting: Waiting) -> None:
        require = waiting.query.require
        view = self.view
        if waiting.bundles and not view.applied.issuperset(require):
            view = _with_bundles(self.name, self.durable, waiting.bundles)
        if view.applied.issuperset(require):
            self._open.remove(waiting)
            self._reply(view, waiting.query, waiting.answer)

    def _refuse(self, waiting: Waiting) -> None:
        if waiting in self._open:
            self._open.remove(waiting)
            applied, hlc_max, epoch = self.view.applied, self.core.hlc_max, self.view.epoch
            waiting.answer(Found(ReplicaStatus.NOT_COVERED, applied, hlc_max, (), epoch))

    def _fetch_for(self, waiting: Waiting) -> None:
        missing = self.core.missing(waiting.query.require)
        if missing and waiting in self._open:
            for node in waiting.query.holders:
                if node in self.shadows:
                    self._pull_for(waiting, self.shadows[node], missing)

    def _pull_for(self, waiting: Waiting, peer: ReadReplica, want: GtidSet) -> None:
        """Ask a peer; what comes is merged into a copy, after as long as the voter's disk would take."""
        life, have = self.life, self.core.applied

        def merged(bundle: PullBundle) -> None:
            waiting.bundles.append(bundle)
            if waiting in self._open:
                self._serve(waiting)

        def arrived(bundle: PullBundle) -> None:
            if self.life == life:
                self._soon(self.origin.commit_us, lambda: merged(bundle))

        def serve() -> None:
            for bundle in peer.bundles(want, have):
                self.reads.send(peer, self, lambda bundle=bundle: arrived(bundle))  # type: ignore[misc]

        self.reads.requests += 1
        self.reads.send(self, peer, serve)

    # What the other rules ask for.

    def on_plain_search(self, query: int, k: int, answer: Callable[[Answer], None]) -> None:
        """The best k passages of the view there is."""
        found = Answer(self.digest(), self._top(self.view, query, k))
        self._soon(SEARCH_US, lambda: answer(found))

    def on_lookup(self, document_ids: frozenset[str], answer: Callable[[list[Hit]], None]) -> None:
        """These documents as they are here: every passage; of a deleted one its tombstone, ordinal -1."""
        found = []
        for document_id in sorted(document_ids & self.view.live.keys()):
            version, rows = self.view.live[document_id]
            found += [Hit(document_id, row.ordinal, version, row.vector) for row in rows]
            if not rows:
                found.append(Hit(document_id, -1, version, b""))
        self._soon(LOOKUP_US, lambda: answer(found))

    def digest(self) -> bytes:
        """Of every document's name, version and size in the view, tombstones included."""
        if self._digest is None:
            state = blake2b(digest_size=16)
            for document_id, (version, rows) in sorted(self.view.live.items()):
                state.update(f"{document_id} {version.hlc} {version.source} {len(rows)}\n".encode())
            self._digest = state.digest()
        return self._digest

    def _top(self, view: View, query: int, k: int) -> tuple[Hit, ...]:
        self.searches += 1
        rows = (
            (rank(query, document_id, row.ordinal, row.vector), Hit(document_id, row.ordinal, version, row.vector))
            for document_id, (version, passages) in view.live.items()
            for row in passages
        )
        return tuple(hit for _, hit in nsmallest(k, rows, key=lambda ranked: ranked[0]))

    def _soon(self, range_us: tuple[int, int], action: Action) -> None:
        self.later(self.timeline.random.randint(*range_us), action)


def _with_bundles(name: str, durable: DurableRows, bundles: list[PullBundle]) -> View:
    """The view that a voter with these rows would have after merging, by the production merge, in a copy."""
    copy = DurableRows()
    copy.heads = dict(durable.heads)
    copy.passages = {document_id: dict(rows) for document_id, rows in durable.passages.items()}
    copy.applied_set, copy.hlc_max = durable.applied_set, durable.hlc_max
    core, transaction = ReplicaCore(name, EPOCH, copy.applied_set, copy.hlc_max), Transaction(copy)
    for bundle in bundles:
        core.merge(bundle, transaction)
    transaction.commit()
    core.committed()
    live = {
        document_id: (head.version, tuple(copy.live_passages(document_id))) for document_id, head in copy.heads.items()
    }
    return View(core.applied, live)


class ReadRouter(SimRouter):
    """One rule's searches on a router: its summary rounds are its own."""

    def __init__(
        self, name: str, stream: Stream, network: ReadNetwork, members: Members, voters: Mapping[str, ReadReplica]
    ) -> None:
        self.voters = voters
        self.reads = network
        super().__init__(name, stream, network, members, voters)


class ShadowedReplica(SimReplica):
    """A voter that tells its shadows what it publishes, and when it starts and dies."""

    shadows: tuple[ReadReplica, ...] = ()

    def start(self) -> None:
        super().start()
        for shadow in self.shadows:
            shadow.start()

    def die(self) -> None:
        super().die()
        for shadow in self.shadows:
            shadow.die()

    def show(self, view: View) -> None:
        super().show(view)
        for shadow in self.shadows:
            shadow.show(view)


class ShadowedRouter(SimRouter):
    """A router whose shadows start and die with it."""

    shadows: tuple[ReadRouter, ...] = ()

    def start(self) -> None:
        super().start()
        for shadow in self.shadows:
            shadow.start()

    def die(self) -> None:
        super().die()
        for shadow in self.shadows:
            shadow.die()
