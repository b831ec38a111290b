"""One search or lookup on a router, driven by the production `QuorumSearch`."""

from __future__ import annotations

from collections.abc import Callable

from services.quorum.gtid import GtidSet
from services.quorum.replica import Summary
from services.quorum.search import Accept, FreshRound, Leg, QuorumSearch, Unavailable
from services.quorum.status import ReplicaStatus
from tests.simulation.history import Hit
from tests.simulation.replica import EPOCH, Found, Query
from tests.simulation.router import SimRouter
from tests.simulation.timeline import MS

DEADLINE_US = 300 * MS
LEG_US = 80 * MS
WAIT_US = 45 * MS
HEDGE_US = 8 * MS

Done = Callable[[tuple[GtidSet, tuple[Hit, ...]] | None], None]
"""Called once: the view's applied set and the hits, None when the level cannot be had."""


class Searching:
    """A search at QUORUM (`require` None), or of a view that contains `require`; of one document if `only` is given."""

    def __init__(
        self, router: SimRouter, query: int, k: int, require: GtidSet | None, done: Done, only: str | None = None
    ) -> None:
        self._router = router
        self._query, self._k, self._only = query, k, only
        order = list(router.members.voters)
        router.timeline.random.shuffle(order)
        self._search = QuorumSearch(router.members, tuple(order), require)
        if require is None:
            self._search.round = router.new_round()
        self._quorum = require is None
        self._done = done
        self._found: list[tuple[GtidSet, tuple[Hit, ...]]] = []
        self._ended = False
        self._ticket: int | None = None

    def begin(self) -> None:
        """Send the first leg and, at QUORUM, the summary round with it."""
        self._router.later(DEADLINE_US, lambda: self._finish(None))
        self._leg(self._search.first())
        if self._quorum:
            self._join()
        self._router.later(HEDGE_US, self._hedge)

    def _join(self) -> None:
        rounds = self._search.rounds

        def heard(name: str, summary: Summary | None) -> None:
            if self._ended or self._search.rounds != rounds:
                return
            if summary is None:
                self._search.summary_failed(name)
            else:
                self._search.summary(summary)
            self._go_on()

        self._ticket = self._router.join(heard)

    def _hedge(self) -> None:
        if not self._ended:
            leg = self._search.hedge()
            if leg is not None:
                self._leg(leg)

    def _leg(self, leg: Leg) -> None:
        name = leg.replica.replica_id
        query = Query(self._query, self._k, leg.require, leg.holders, WAIT_US, self._only)
        target = self._router.replicas[name]

        def landed(found: Found | None) -> None:
            if self._ended:
                return
            if found is None:
                self._search.leg_failed(name, f"{name} did not answer")
            else:
                self._answered(name, leg, found)
            self._go_on()

        self._router.network.call(self._router, target, lambda reply: target.on_search(query, reply), landed, LEG_US)

    def _answered(self, name: str, leg: Leg, found: Found) -> None:
        status, applied, hlc_max, hits = found
        index = self._search.leg_answered(name, status, applied, hlc_max, leg.require, epoch=EPOCH)
        if index is not None:
            assert status is ReplicaStatus.OK
            assert index == len(self._found)
            self._found.append((applied, hits))

    def _go_on(self) -> None:
        decision = self._search.decide()
        if isinstance(decision, Accept):
            self._finish(self._found[decision.answer])
        elif isinstance(decision, Leg):
            self._leg(decision)
        elif isinstance(decision, FreshRound):
            self._leave()
            self._search.begin_round()
            self._search.round = self._router.new_round()
            self._join()
        elif isinstance(decision, Unavailable):
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
