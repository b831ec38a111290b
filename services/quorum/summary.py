"""A summary round: what must a read contain, and above what must a write's version lie.

A gtid that was acknowledged is held by W voters. Of those, every one that answered shows it and every one that did not
is counted as a holder; so `require` is each gtid with (answers that hold it) + (voters that did not answer) >= W. With
R + W > N an acknowledged gtid is in at least one of R answers. `require` only shrinks as more voters answer, so a round
is usable as soon as R have.
"""

from __future__ import annotations

from services.quorum.gtid import GtidSet
from services.quorum.members import Members
from services.quorum.replica import Summary
from services.quorum.status import ReplicaStatus
from services.quorum.vote import Vote, tally


class SummaryRound:
    """Collects one answer per voter. Only answers to requests sent after the operation arrived may be added."""

    def __init__(self, members: Members) -> None:
        self.members = members
        self._answers: dict[str, Summary] = {}
        self._failed: set[str] = set()
        self._require: GtidSet | None = None

    def add(self, summary: Summary) -> None:
        """Count a voter's answer, the first one it gave; a refusal counts as a failure."""
        if self.members.voter(summary.replica_id) is None or summary.replica_id in self._answers:
            return
        if summary.status is not ReplicaStatus.OK or summary.epoch != self.members.epoch:
            self.fail(summary.replica_id)
            return
        self._failed.discard(summary.replica_id)
        self._answers[summary.replica_id] = summary
        self._require = None

    def fail(self, replica_id: str) -> None:
        """A voter did not answer or refused; a later answer may still count."""
        if self.members.voter(replica_id) is not None and replica_id not in self._answers:
            self._failed.add(replica_id)

    @property
    def vote(self) -> Vote:
        """WON with R answers, LOST when R can no longer be had."""
        return tally(
            voters=len(self.members.voters),
            needed=self.members.read_quorum,
            yes=len(self._answers),
            no=len(self._failed),
        )

    @property
    def answered(self) -> int:
        """Voters counted."""
        return len(self._answers)

    @property
    def complete(self) -> bool:
        """Every voter has answered or failed."""
        return len(self._answers) + len(self._failed) == len(self.members.voters)

    def require(self) -> GtidSet:
        """Every gtid that may have been acknowledged before the round was sent. Only for a round that is WON."""
        assert self.vote is Vote.WON
        if self._require is None:
            silent = len(self.members.voters) - len(self._answers)
            needed = max(1, self.members.write_quorum - silent)
            self._require = GtidSet.at_least([answer.applied for answer in self._answers.values()], needed)
        return self._require

    def hlc_max(self) -> int:
        """The highest clock reading heard; a version above it is above every acknowledged one."""
        assert self.vote is Vote.WON
        return max(answer.hlc_max for answer in self._answers.values())

    def holders(self, gtids: GtidSet) -> tuple[str, ...]:
        """Nodes whose voters hold any of `gtids`, those that hold the most first."""
        counted = []
        for voter in self.members.voters:
            answer = self._answers.get(voter.replica_id)
            if answer is not None and (held := len(gtids.intersection(answer.applied))):
                counted.append((-held, voter.node))
        return tuple(node for _, node in sorted(counted))

    def applied(self, replica_id: str) -> GtidSet | None:
        """What a voter said it has applied, if it answered."""
        answer = self._answers.get(replica_id)
        return answer.applied if answer else None
