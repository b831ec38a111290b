"""One write on a router: a clock round, then batches to every voter until W hold them or time is up."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from services.quorum.clock import Version
from services.quorum.gtid import GtidSet
from services.quorum.replica import Summary
from services.quorum.rows import HeadRow, PassageRow, WriteBatch
from services.quorum.status import ReplicaStatus
from services.quorum.vote import Vote
from services.quorum.write import WriteRound
from tests.simulation.history import Write
from tests.simulation.router import SimRouter
from tests.simulation.timeline import MS

DEADLINE_US = 250 * MS
ATTEMPT_US = 60 * MS
AGAIN_US = 15 * MS
FROZEN_US = 10 * MS
"""How often an operation looks whether a FROZEN record was followed by another."""

ELSEWHERE = (ReplicaStatus.STALE_EPOCH, ReplicaStatus.STALE_TOPOLOGY)
"""Answers of a replica that is in another epoch."""

Done = Callable[[GtidSet | None], None]
"""Called once: the gtids of an acknowledged write, None when the outcome is uncertain or nothing was sent."""


class Writing:
    """Writes documents of one version. `split`: one document travels in several batches, its head in the last."""

    def __init__(self, router: SimRouter, writes: Sequence[Write], split: bool, done: Done) -> None:
        assert not split or len(writes) == 1
        self.router = router
        self.writes = writes
        self._split = split
        self._done = done
        self._ended = False
        self._all = GtidSet.EMPTY

    def begin(self) -> None:
        """Start; a write that has a version is a retry and keeps it."""
        self.router.later(DEADLINE_US, self._deadline)
        self._when_active()

    def _when_active(self) -> None:
        """Begin once the record is not FROZEN."""
        if self.router.frozen and not self._ended:
            self.router.refresh()
            self.router.later(FROZEN_US, self._when_active)
            return
        version = self.writes[0].version
        if version is not None:
            self._send(version)
        else:
            self.choose_version()

    def choose_version(self) -> None:
        """A version above everything acknowledged before this write began."""
        members, chosen = self.router.members, False
        round_ = self.router.new_round(members)

        def heard(name: str, summary: Summary | None) -> None:
            nonlocal chosen
            if summary is None:
                round_.fail(name)
            else:
                round_.add(summary)
            if round_.vote is Vote.WON and not chosen and not self._ended:
                chosen = True
                self.router.leave(ticket)
                self._send(self.router.clock.next(self.router.now_ms(), self.router.version_floor(round_)))
            elif round_.vote is Vote.LOST and self.router.members.epoch > members.epoch and not self._ended:
                self.router.leave(ticket)
                self.choose_version()

        ticket = self.router.join(members, heard)

    def _send(self, version: Version) -> None:
        for write in self.writes:
            write.version = version
        rows = [
            PassageRow(write.document_id, ordinal, version, content, b"")
            for write in self.writes
            for ordinal, content in enumerate(write.contents)
        ]
        early = [self._batch(version, (row,), ()) for row in rows[:-1]] if self._split else []
        late = tuple(rows[-1:] if self._split else rows)
        heads = tuple(HeadRow(write.document_id, len(write.contents), version) for write in self.writes)
        depends = GtidSet.of(*(batch.gtid for batch in early))
        last = self._batch(version, late, heads, depends)
        waiting = {batch.gtid for batch in early}

        def early_won(batch: WriteBatch) -> None:
            waiting.discard(batch.gtid)
            if not waiting:
                self._deliver(last, lambda batch: self._finish(self._all))

        if not early:
            self._deliver(last, lambda batch: self._finish(self._all))
        for batch in early:
            self._deliver(batch, early_won)

    def _batch(
        self,
        version: Version,
        rows: tuple[PassageRow, ...],
        heads: tuple[HeadRow, ...],
        depends: GtidSet = GtidSet.EMPTY,
    ) -> WriteBatch:
        gtid = self.router.new_gtid()
        self._all = self._all.add(gtid)
        return WriteBatch(gtid, version, rows, heads, depends)

    def _deliver(self, batch: WriteBatch, won: Callable[[WriteBatch], None]) -> None:
        Delivery(self.router, batch, won).begin()

    def _deadline(self) -> None:
        self._finish(None)

    def _finish(self, gtids: GtidSet | None) -> None:
        if not self._ended:
            self._ended = True
            self._done(gtids)


class Delivery:
    """One batch on its way, repeated until every voter has it or time is up; acknowledgements count within an epoch."""

    def __init__(self, router: SimRouter, batch: WriteBatch, won: Callable[[WriteBatch], None]) -> None:
        self._router = router
        self._batch = batch
        self._won: Callable[[WriteBatch], None] | None = won
        self._until_us = router.timeline.now_us + DEADLINE_US

    def begin(self) -> None:
        """Send to every voter."""
        self._round = self._router.new_write(self._router.members, self._batch)
        for voter in self._round.members.voters:
            self._attempt(self._round, voter.replica_id)

    def _attempt(self, round_: WriteRound, name: str) -> None:
        target = self._router.replicas[name]
        round_.sent(name)

        def handle(reply: Callable[[ReplicaStatus], None]) -> None:
            target.on_write(self._batch, round_.members.epoch, reply)

        def landed(status: ReplicaStatus | None) -> None:
            if round_ is self._round:
                self._landed(name, status)

        self._router.network.call(self._router, target, handle, landed, ATTEMPT_US)

    def _landed(self, name: str, status: ReplicaStatus | None) -> None:
        if status is None:
            self._round.on_failure(name)
        else:
            self._round.on_reply(name, status)
        if status in ELSEWHERE:
            self._router.refresh()
        if self._round.vote is Vote.WON and self._won is not None:
            won, self._won = self._won, None
            won(self._batch)
        if self._router.members.epoch > self._round.members.epoch:
            self._move()
        elif any(voter.replica_id == name for voter in self._round.retryable()) or self._round.vote is Vote.LOST:
            self._router.later(AGAIN_US, lambda: self._again(name))

    def _again(self, name: str) -> None:
        if self._router.timeline.now_us >= self._until_us:
            return
        if self._router.members.epoch > self._round.members.epoch:
            self._move()
        elif any(voter.replica_id == name for voter in self._round.retryable()):
            self._attempt(self._round, name)
        elif self._round.vote is Vote.LOST:
            self._router.later(AGAIN_US, lambda: self._again(name))

    def _move(self) -> None:
        """Other members decide now: nothing that the former ones said counts."""
        if self._won is not None and self._router.timeline.now_us < self._until_us:
            self.begin()
