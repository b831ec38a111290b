"""What is wrong with the mesh at the moment, and how its callers fared meanwhile."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

ONE_VOTER_DOWN = "one voter down"
NOTHING = "nothing wrong"
HEALING = "nothing wrong any more, replicas not equal yet"
OTHER = "anything else"


@dataclass(slots=True)
class Situation:
    """The faults under way; each counts the voters that cannot take part, and says whether it harms anything else."""

    healing: bool = False
    """Faults have ended and the replicas are not equal yet."""
    _down: dict[str, tuple[frozenset[str], bool]] = field(default_factory=dict)

    def begin(self, fault: str, voters: Iterable[str], *, only_voters: bool) -> None:
        """`only_voters`: apart from these the mesh is whole."""
        self._down[fault] = (frozenset(voters), only_voters)

    def end(self, fault: str) -> None:
        self._down.pop(fault, None)

    @property
    def kind(self) -> str:
        """One of the four above."""
        if not self._down:
            return HEALING if self.healing else NOTHING
        voters = frozenset[str]().union(*(voters for voters, _ in self._down.values()))
        alone = all(only_voters for _, only_voters in self._down.values())
        return ONE_VOTER_DOWN if alone and len(voters) == 1 else OTHER


@dataclass(slots=True)
class Calls:
    """Calls at QUORUM by situation: the one in which a call began, or the one in which it ended when that is worse."""

    succeeded: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    """Why calls failed with one voter down, or with nothing wrong."""

    def add(self, before: str, after: str, failure: str) -> None:
        """One call; `failure` is empty when it succeeded."""
        kind = after if before == NOTHING or after == OTHER else before
        (self.failed if failure else self.succeeded)[kind] += 1
        if failure and kind in (NOTHING, ONE_VOTER_DOWN):
            self.reasons[f"{kind}: {failure}"] += 1

    def share(self, kind: str) -> float:
        """Of the calls in a situation, how many succeeded; 1 when there were none."""
        total = self.succeeded[kind] + self.failed[kind]
        return self.succeeded[kind] / total if total else 1.0
