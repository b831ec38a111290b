"""A write batch on its way to W acknowledgements.

A failure without an answer is indefinite: the batch may be applied later. Only when no voter can have it is a write
REFUSED; otherwise, short of W, it is UNCERTAIN and may appear at its version.
"""

from __future__ import annotations

from enum import Enum

from services.quorum.members import Members, ReplicaRef
from services.quorum.rows import WriteBatch
from services.quorum.status import RETRYABLE, ReplicaStatus
from services.quorum.vote import Vote, tally


class Outcome(Enum):
    """What a caller may rely on."""

    ACKNOWLEDGED = "acknowledged"
    UNCERTAIN = "uncertain"
    REFUSED = "refused"


class WriteRound:
    """The acknowledgements of one batch. Every attempt is announced by `sent` and ends in a reply or a failure."""

    def __init__(self, members: Members, batch: WriteBatch) -> None:
        self.members = members
        self.batch = batch
        self._applied: set[str] = set()
        self._refused: dict[str, ReplicaStatus] = {}
        self._pending: dict[str, int] = {}
        self._maybe: set[str] = set()

    def sent(self, replica_id: str) -> None:
        """The batch left for a voter."""
        assert self.members.voter(replica_id) is not None
        self._pending[replica_id] = self._pending.get(replica_id, 0) + 1

    def on_reply(self, replica_id: str, status: ReplicaStatus) -> None:
        """A voter answered."""
        self._landed(replica_id)
        if status is ReplicaStatus.OK:
            self._applied.add(replica_id)
            self._refused.pop(replica_id, None)
        elif replica_id not in self._applied:
            self._refused[replica_id] = status

    def on_failure(self, replica_id: str, *, definite: bool = False) -> None:
        """An attempt ended without an answer; `definite`: it certainly never reached the voter."""
        self._landed(replica_id)
        if not definite:
            self._maybe.add(replica_id)

    @property
    def acks(self) -> int:
        """Voters that hold the batch durably and visibly."""
        return len(self._applied)

    @property
    def vote(self) -> Vote:
        """WON at W acknowledgements, LOST when final refusals make W impossible."""
        final = [replica_id for replica_id, status in self._refused.items() if status not in RETRYABLE]
        return tally(
            voters=len(self.members.voters),
            needed=self.members.write_quorum,
            yes=len(self._applied),
            no=len(final),
        )

    def retryable(self) -> tuple[ReplicaRef, ...]:
        """Voters without an attempt under way that may yet apply the batch."""
        return tuple(
            voter
            for voter in self.members.voters
            if voter.replica_id not in self._applied
            and not self._pending.get(voter.replica_id)
            and self._refused.get(voter.replica_id, ReplicaStatus.OVERLOADED) in RETRYABLE
        )

    def outcome(self) -> Outcome:
        """The outcome if the write ended now."""
        if self.vote is Vote.WON:
            return Outcome.ACKNOWLEDGED
        if self._applied or self._maybe or any(self._pending.values()):
            return Outcome.UNCERTAIN
        return Outcome.REFUSED

    @property
    def moved(self) -> bool:
        """Whether a voter said that the members are others now: another round may succeed with the same batch."""
        return any(
            status in (ReplicaStatus.STALE_EPOCH, ReplicaStatus.UNKNOWN_REPLICA) for status in self._refused.values()
        )

    def reason(self) -> str:
        """Why the vote is not won, for people."""
        parts = [f"{len(self._applied)} of {self.members.write_quorum} needed voters acknowledged"]
        for voter in self.members.voters:
            if (status := self._refused.get(voter.replica_id)) is not None:
                parts.append(f"{voter.node} answered {status.name}")
            elif voter.replica_id not in self._applied:
                parts.append(f"{voter.node} did not answer")
        return "; ".join(parts)

    def _landed(self, replica_id: str) -> None:
        count = self._pending.get(replica_id, 0)
        assert count > 0, "a reply without an attempt"
        self._pending[replica_id] = count - 1
