"""One search or lookup on a router, driven by the production `QuorumSearch`."""

from __future__ import annotations

from collections.abc import Callable

from services.quorum.gtid import GtidSet
from services.quorum.replica import Summary
from services.quorum.search import Accept, FreshRound, Leg, QuorumSearch, Unavailable
from services.quorum.status import ReplicaStatus
from tests.simulation.history import Hit
from tests.simulation.replica import Found, Query
from tests.simulation.router import SimRouter
from tests.simulation.timeline import MS

DEADLINE_US = 300 * MS
LEG_US = 80 * MS
WAIT_US = 45 * MS
HEDGE_US = 8 * MS
FROZEN_US = 10 * MS
"""How often an operation looks whether a FROZEN record was followed by another."""

Done = Callable[[tuple[GtidSet, tuple[Hit, ...]] | None], None]
"""Called once: the view's applied set and the hits, None when the level cannot be had."""


class Searching:
    """A search at QUORUM (`require` None), or of a view that contains `require`; of one document if `only` is given."""

    def __init__(
        self,
        router: SimRouter,
        query: int,
        k: int,
        require: GtidSet | None,
        done: Done,
        only: str | None = None,
        *,
        linearizable: bool = False,
    ) -> None:
        """`linearizable`: what a lookup finds is held by W voters before it is returned (Attiya, Bar-Noy and Dolev)."""
        self._router = router
        self._query, self._k, self._only = query, k, only
        self._require = require
        self._linearizable = linearizable
        self._done = done
        self._ended = False
        self._ticket: int | None = None

    def begin(self) -> None:
        """Begin once the record is not FROZEN; reads that need no quorum do not wait for that."""
        self._router.later(DEADLINE_US, self._stop)
        self._when_active()

    def _when_active(self) -> None:
        if self._router.frozen and self._require is None and not self._ended:
            self._router.refresh()
            self._router.later(FROZEN_US, self._when_active)
        elif not self._ended:
            self._start()

    def _start(self) -> None:
        """Send the first leg and, at QUORUM, the summary round with it."""
        members = self._router.members
        order = [*members.voters, *self._router.learners]
        self._router.timeline.random.shuffle(order)
        self._search = QuorumSearch(members, tuple(order), self._require)
        self._found: list[Found] = []
        if self._require is None:
            self._search.round = self._router.new_round(members)
        search = self._search
        self._leg(search.first())
        if self._require is None:
            self._join()
        self._router.later(HEDGE_US, lambda: self._hedge() if self._search is search else None)

    def _join(self) -> None:
        search, rounds = self._search, self._search.rounds

        def heard(name: str, summary: Summary | None) -> None:
            if self._ended or self._search is not search or search.rounds != rounds:
                return
            if summary is None:
                self._search.summary_failed(name)
            else:
                self._search.summary(summary)
            self._go_on()

        self._ticket = self._router.join(search.members, heard)

    def _hedge(self) -> None:
        if not self._ended:
            leg = self._search.hedge()
            if leg is not None:
                self._leg(leg)

    def _leg(self, leg: Leg) -> None:
        search, name = self._search, leg.replica.replica_id
        query = Query(self._query, self._k, leg.require, leg.holders, WAIT_US, self._only)
        target = self._router.replicas[name]

        def landed(found: Found | None) -> None:
            if self._ended or self._search is not search:
                return
            if found is None:
                self._search.leg_failed(name, f"{name} did not answer")
            else:
                self._answered(name, leg, found)
            self._go_on()

        self._router.network.call(self._router, target, lambda reply: target.on_search(query, reply), landed, LEG_US)

    def _answered(self, name: str, leg: Leg, found: Found) -> None:
        index = self._search.leg_answered(
            name, found.status, found.applied, found.hlc_max, leg.require, epoch=found.epoch
        )
        if index is not None:
            assert found.status is ReplicaStatus.OK
            assert index == len(self._found)
            self._found.append(found)

    def _go_on(self) -> None:
        decision = self._search.decide()
        if isinstance(decision, Accept):
            self._accept(self._found[decision.answer])
        elif isinstance(decision, Leg):
            self._leg(decision)
        elif isinstance(decision, FreshRound):
            self._leave()
            self._search.begin_round()
            self._search.round = self._router.new_round(self._search.members)
            self._join()
        elif isinstance(decision, Unavailable):
            self._again()

    def _accept(self, found: Found) -> None:
        if self._linearizable:
            self._leave()
            self._write_back(found)
        else:
            self._finish((found.applied, found.hits))

    def _write_back(self, found: Found) -> None:
        """Return what was found once W voters hold it; the deadline ends it otherwise."""
        router, members = self._router, self._search.members
        self._search = QuorumSearch(members, members.voters, GtidSet.EMPTY)  # late legs mean nothing now
        holding: set[str] = set()

        def landed(name: str, status: ReplicaStatus | None) -> None:
            if status is ReplicaStatus.OK:
                holding.add(name)
            if len(holding) >= router.held_by(members):
                self._finish((found.applied, found.hits))

        for voter in members.voters:
            name, target = voter.replica_id, router.replicas[voter.replica_id]
            router.network.call(
                router,
                target,
                lambda reply, target=target: target.on_cover(found.batches, members.epoch, reply),  # type: ignore[misc]
                lambda status, name=name: landed(name, status),  # type: ignore[misc]
                LEG_US,
            )

    def _again(self) -> None:
        """Nothing more to be had of these members; wait for a record that names others, if this one may be old."""
        self._leave()
        if self._router.members.epoch > self._search.members.epoch or self._router.frozen:
            self._when_active()
        else:
            self._finish(None)

    def _stop(self) -> None:
        self._finish(None)

    def _leave(self) -> None:
        if self._ticket is not None:
            self._router.leave(self._ticket)
            self._ticket = None

    def _finish(self, result: tuple[GtidSet, tuple[Hit, ...]] | None) -> None:
        if not self._ended:
            self._ended = True
            self._leave()
            self._done(result)
