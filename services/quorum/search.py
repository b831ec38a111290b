"""A search of one shard: which replica's answer counts, and what to do when none does.

Speculative: the search and the summary round go out together. A view is accepted when it contains `require`; if the
searched replicas fell short, one is asked again with `require`, waits, and pulls what it lacks. If it cannot get it
(the only holder died since), a fresh summary round, at most `rounds_max`, tells whether it was ever acknowledged.
A view of a current voter, read after the operation arrived, is itself that voter's summary.
"""

from __future__ import annotations

from dataclasses import dataclass

from services.quorum.gtid import GtidSet
from services.quorum.members import Members, ReplicaRef
from services.quorum.replica import Summary
from services.quorum.status import ReplicaStatus
from services.quorum.summary import SummaryRound
from services.quorum.vote import Vote

ROUNDS_MAX = 3


@dataclass(frozen=True, slots=True)
class Wait:
    """Something under way will bring news."""


@dataclass(frozen=True, slots=True)
class Accept:
    """The answer with this index (as `leg_answered` returned it) is the shard's answer."""

    answer: int


@dataclass(frozen=True, slots=True)
class Leg:
    """Ask this replica, with this requirement, naming who holds what it may lack."""

    replica: ReplicaRef
    require: GtidSet
    holders: tuple[str, ...]
    role: str


@dataclass(frozen=True, slots=True)
class FreshRound:
    """Start a new summary round (`begin_round`)."""


@dataclass(frozen=True, slots=True)
class Unavailable:
    """The level asked for cannot be had."""

    reason: str


Decision = Wait | Accept | Leg | FreshRound | Unavailable


class QuorumSearch:
    """One shard's search. `order`: replicas, best first. `require`: given for ONE and SESSION, None for QUORUM."""

    def __init__(
        self,
        members: Members,
        order: tuple[ReplicaRef, ...],
        require: GtidSet | None = None,
        rounds_max: int = ROUNDS_MAX,
    ) -> None:
        assert order
        self.members = members
        self.round: SummaryRound | None = SummaryRound(members) if require is None else None
        self.rounds = 1
        self.hedges = 0
        self.retries = 0
        self._fixed = require
        self._order = order
        self._rounds_max = rounds_max
        self._answers: list[tuple[str, GtidSet]] = []
        self._in_flight: set[str] = set()
        self._failed: set[str] = set()
        self._short: dict[str, GtidSet] = {}
        self._last_reason = "no replica answered"

    def first(self) -> Leg:
        """The leg to send at once."""
        return self._leg(self._order[0], self._fixed or GtidSet.EMPTY, "primary")

    def hedge(self) -> Leg | None:
        """A second replica, when the one under way is slow; None when there is nobody left to ask."""
        candidates = self._candidates(exclude=self._in_flight | self._failed)
        if not candidates or not self._in_flight:
            return None
        self.hedges += 1
        return self._leg(candidates[0], self._known_require(), "hedge")

    def begin_round(self) -> SummaryRound:
        """Forget the old summary round: only answers to requests sent from now on count."""
        assert self._fixed is None
        self.rounds += 1
        self.round = SummaryRound(self.members)
        self._short.clear()
        return self.round

    def summary(self, summary: Summary) -> None:
        """A voter's summary of the current round."""
        if self.round is not None:
            self.round.add(summary)

    def summary_failed(self, replica_id: str) -> None:
        """A voter did not answer the current round."""
        if self.round is not None:
            self.round.fail(replica_id)

    def leg_answered(
        self, replica_id: str, status: ReplicaStatus, view: GtidSet, hlc_max: int, asked: GtidSet, *, epoch: int
    ) -> int | None:
        """A searched replica answered. Returns the index of a usable answer, None when it brought nothing."""
        self._in_flight.discard(replica_id)
        if status is ReplicaStatus.OK:
            self._answers.append((replica_id, view))
            if self.round is not None and self.rounds == 1:
                self.round.add(Summary(replica_id, status, view, hlc_max, epoch))
            return len(self._answers) - 1
        self._last_reason = f"replica {replica_id} answered {status.name}"
        if status is ReplicaStatus.NOT_COVERED:
            self._short[replica_id] = asked
        else:
            self._failed.add(replica_id)
        return None

    def leg_failed(self, replica_id: str, reason: str) -> None:
        """A searched replica did not answer."""
        self._in_flight.discard(replica_id)
        self._failed.add(replica_id)
        self._last_reason = reason

    def decide(self) -> Decision:
        """What to do now. A returned leg is taken as sent."""
        require = self._known_require() if self._ready() else None
        if require is not None:
            for index, (_, view) in enumerate(self._answers):
                if view.issuperset(require):
                    return Accept(index)
        if self.round is not None and self.round.vote is Vote.LOST:
            return Unavailable(f"fewer than {self.members.read_quorum} voters answered")
        if self._in_flight:
            return Wait()
        if require is None:
            return self._next_speculative()
        candidates = self._candidates(exclude=self._failed | set(self._short))
        if candidates:
            self.retries += 1
            return self._leg(candidates[0], require, "retry")
        if self._short and self._fixed is None and self.rounds < self._rounds_max:
            return FreshRound()
        return Unavailable(self._last_reason)

    def holders(self, require: GtidSet) -> tuple[str, ...]:
        """Nodes that hold part of `require`; without a round, every voter's node."""
        if self.round is None:
            return tuple(voter.node for voter in self.members.voters)
        return self.round.holders(require)

    def _ready(self) -> bool:
        return self.round is None or self.round.vote is Vote.WON

    def _known_require(self) -> GtidSet:
        if self._fixed is not None:
            return self._fixed
        return self.round.require() if self.round is not None and self.round.vote is Vote.WON else GtidSet.EMPTY

    def _next_speculative(self) -> Decision:
        """The round is still pending and no leg is under way: a failed leg is replaced, an answered one waits."""
        candidates = self._candidates(exclude=self._failed)
        if self._answers or not candidates:
            return Wait()
        self.retries += 1
        return self._leg(candidates[0], GtidSet.EMPTY, "retry")

    def _candidates(self, exclude: set[str]) -> list[ReplicaRef]:
        """Replicas left to ask, those known to contain most of the requirement first."""
        left = [replica for replica in self._order if replica.replica_id not in exclude]
        if self.round is None or self.round.vote is not Vote.WON:
            return left
        require = self.round.require()
        current = self.round

        def lacking(replica: ReplicaRef) -> int:
            applied = current.applied(replica.replica_id)
            return len(require) + 1 if applied is None else len(require.difference(applied))

        return sorted(left, key=lacking)

    def _leg(self, replica: ReplicaRef, require: GtidSet, role: str) -> Leg:
        self._in_flight.add(replica.replica_id)
        return Leg(replica, require, self.holders(require) if require else (), role)
