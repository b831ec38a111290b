"""Clients: one operation after the other, each under its own session."""

from __future__ import annotations

from collections.abc import Sequence

from services.quorum.gtid import GtidSet
from services.quorum.session import decode_session, encode_session, merge_sessions
from tests.simulation.history import History, Hit, Level, Search, Write, content_of
from tests.simulation.router import SimRouter
from tests.simulation.searching import Searching
from tests.simulation.timeline import MS, Timeline
from tests.simulation.writing import Writing

PATIENCE_US = 350 * MS
"""A client whose router died goes on after this."""
KEY = ("simulated", 0)


class Client:
    """A closed loop of writes and searches until `until_us`."""

    def __init__(
        self,
        session: int,
        timeline: Timeline,
        routers: Sequence[SimRouter],
        history: History,
        documents: Sequence[str],
        think_us: int,
        until_us: int,
    ) -> None:
        self._session = session
        self._timeline = timeline
        self._routers = routers
        self._history = history
        self._documents = documents
        self._think_us = think_us
        self._until_us = until_us
        self._token = b""
        self._operation = 0
        self._written = 0

    def next(self) -> None:
        """Think for a moment, then do something."""
        self._operation += 1
        think_us = int(self._timeline.random.expovariate(1 / self._think_us))
        self._timeline.after(think_us, self._act)

    def _act(self) -> None:
        random = self._timeline.random
        if self._timeline.now_us >= self._until_us:
            return
        living = [router for router in self._routers if router.up]
        if not living:
            self._timeline.after(20 * MS, self._act)
            return
        router = random.choice(living)
        operation = self._operation
        self._timeline.after(PATIENCE_US, lambda: self.next() if self._operation == operation else None)
        if random.random() < 0.45:
            self._write(router)
        else:
            self._search(router)

    def _remember(self, seen: GtidSet) -> None:
        self._token = encode_session(merge_sessions(decode_session(self._token), {KEY: seen}))

    def _write(self, router: SimRouter) -> None:
        random = self._timeline.random
        split = random.random() < 0.3
        names = random.sample(self._documents, 1 if split or random.random() < 0.7 else 2)
        writes = []
        for name in names:
            self._written += 1
            passages = 0 if random.random() < 0.2 and not split else random.randint(2 if split else 1, 4)
            text = f"{self._session}.{self._written}"
            contents = tuple(content_of(name, ordinal, text) for ordinal in range(passages))
            writes.append(Write(name, contents, self._session, self._timeline.now_us))
        self._history.writes += writes
        self._attempt(router, writes, split)

    def _attempt(self, router: SimRouter, writes: Sequence[Write], split: bool) -> None:
        operation = self._operation

        def done(gtids: GtidSet | None) -> None:
            if operation != self._operation:
                return
            if gtids is not None:
                for write in writes:
                    write.acked_us = self._timeline.now_us
                self._remember(gtids)
                self.next()
            else:
                self._uncertain(writes, split)

        Writing(router, writes, split, done).begin()

    def _uncertain(self, writes: Sequence[Write], split: bool) -> None:
        """The same version again, under a new gtid, through whichever router lives; or give up."""
        living = [router for router in self._routers if router.up]
        self._operation += 1
        if not living or self._timeline.random.random() < 0.4:
            self.next()
            return
        operation = self._operation
        self._timeline.after(PATIENCE_US, lambda: self.next() if self._operation == operation else None)
        self._attempt(self._timeline.random.choice(living), writes, split)

    def _search(self, router: SimRouter) -> None:
        random = self._timeline.random
        level = random.choices((Level.QUORUM, Level.SESSION, Level.ONE), (6, 3, 1))[0]
        query, k = random.getrandbits(32), random.choice((2, 5, 1_000))
        require = {
            Level.QUORUM: None,
            Level.LINEARIZABLE: None,
            Level.SESSION: decode_session(self._token).get(KEY, GtidSet.EMPTY),
            Level.ONE: GtidSet.EMPTY,
        }
        only = random.choice(self._documents) if random.random() < 0.2 else None
        if only is not None and level is Level.QUORUM and random.random() < 0.5:
            level, k = Level.LINEARIZABLE, 1_000
        operation, invoked_us = self._operation, self._timeline.now_us

        def done(result: tuple[GtidSet, tuple[Hit, ...]] | None) -> None:
            if operation != self._operation:
                return
            if result is not None:
                seen, hits = result
                now_us = self._timeline.now_us
                search = Search(level, self._session, query, k, invoked_us, now_us, hits, only)
                self._history.searches.append(search)
                self._remember(seen)
            self.next()

        linearizable = level is Level.LINEARIZABLE
        Searching(router, query, k, require[level], done, only, linearizable=linearizable).begin()
