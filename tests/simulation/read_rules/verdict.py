"""What is wrong with a search: judged by the writes alone, to the single row.

A document's *floor* is its newest version acknowledged before the search began. Allowed is each version not below it
whose write began before the search returned; a document without a floor may also be absent. A wrong row is

- *resurrected*: shown below a floor that is a delete;
- *stale*: shown below a floor that is live;
- *missing*: an acknowledged live row that is absent although it is among the best k: either in every allowed state of
  the other documents, or beside what the search itself shows (so a result of fewer than k rows that leaves one out).
  A document shown at an allowed version owes such rows of that version; one not shown at all owes what the most lenient
  allowed version owes. A document shown below its floor is counted under stale or resurrected only.

Whatever is wrong here breaks C1, C1' or C7 of the simulator's checker too; a test says so.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from services.quorum.clock import Version
from tests.simulation.checker import Key, rank
from tests.simulation.history import Hit, Search, Write

Ranks = tuple[Key, ...]
"""A version's passages, best first."""


@dataclass(slots=True)
class Wrong:
    """Rows that are wrong, in one search or in many."""

    stale: int = 0
    resurrected: int = 0
    missing: int = 0

    def __bool__(self) -> bool:
        return bool(self.stale or self.resurrected or self.missing)

    def add(self, other: Wrong) -> None:
        """Count another search's rows too."""
        self.stale += other.stale
        self.resurrected += other.resurrected
        self.missing += other.missing


class _Document:
    """One document's versions in order, with what was acknowledged when."""

    def __init__(self, writes: Iterable[Write]) -> None:
        versioned = [(write.version, write) for write in writes if write.version is not None]
        self._writes = [write for _, write in sorted(versioned, key=lambda pair: pair[0])]
        self._versions = [version for version, _ in sorted(versioned, key=lambda pair: pair[0])]
        self._first_invoked: list[int] = []
        """When the first of this and all higher versions began."""
        earliest = 1 << 62
        for write in reversed(self._writes):
            earliest = min(earliest, write.invoked_us)
            self._first_invoked.append(earliest)
        self._first_invoked.reverse()
        acked = sorted((write.acked_us, version) for version, write in versioned if write.acked_us is not None)
        self._acked_us = [at_us for at_us, _ in acked]
        self._floors: list[Version] = []
        for _, version in acked:
            self._floors.append(max(version, self._floors[-1]) if self._floors else version)

    def floor(self, at_us: int) -> Write | None:
        """The newest version acknowledged before a moment."""
        index = bisect_left(self._acked_us, at_us)
        return self._writes[bisect_left(self._versions, self._floors[index - 1])] if index else None

    def allowed(self, floor: Write | None, before_us: int) -> list[Write]:
        """The floor and every higher version that was begun before a moment."""
        first = bisect_left(self._versions, floor.version) if floor is not None and floor.version is not None else 0
        found = []
        for index in range(first, len(self._writes)):
            if self._first_invoked[index] >= before_us:
                break
            if self._writes[index].invoked_us < before_us:
                found.append(self._writes[index])
        return found


class Judge:
    """Judges searches against the writes of one schedule."""

    def __init__(self, writes: Iterable[Write]) -> None:
        grouped: dict[str, list[Write]] = defaultdict(list)
        for write in writes:
            grouped[write.document_id].append(write)
        self._documents = {document_id: _Document(of_one) for document_id, of_one in grouped.items()}

    def judge(self, search: Search) -> Wrong:
        """The wrong rows of one QUORUM search of all documents."""
        shown: dict[str, list[Hit]] = defaultdict(list)
        for hit in search.hits:
            shown[hit.document_id].append(hit)
        floors = {name: document.floor(search.invoked_us) for name, document in self._documents.items()}
        states: dict[str, list[tuple[Write | None, Ranks]]] = {}
        for name, document in self._documents.items():
            allowed = document.allowed(floors[name], search.returned_us)
            states[name] = [(write, _ranks(search.query, write)) for write in allowed]
            if floors[name] is None:
                states[name].append((None, ()))
        wrong, owed = Wrong(), _Owed(search, states)
        for name in self._documents:
            floor, hits = floors[name], shown.get(name, ())
            below = sum(hit.version < floor.version for hit in hits) if floor and floor.version else 0
            if not below:
                owed.add(name, hits)
            elif floor and floor.contents:
                wrong.stale += below
            else:
                wrong.resurrected += below
        wrong.missing = owed.missing()
        return wrong


States = Mapping[str, Sequence[tuple[Write | None, Ranks]]]
"""Each document's allowed versions with their rows; None: absent."""


class _Owed:
    """The rows that a result lacks."""

    def __init__(self, search: Search, states: States) -> None:
        self._k, self._states = search.k, states
        self._shown = sorted(rank(search.query, hit.document_id, hit.ordinal, hit.content) for hit in search.hits)
        self._cutoff = self._shown[-1] if len(self._shown) >= search.k else None
        self._certain: list[Key] = []
        self._beside: list[Key] = []

    def add(self, name: str, hits: Sequence[Hit]) -> None:
        """What a document shown like this, at an allowed version or not at all, still owes."""
        choices = []
        for write, ranks in self._states[name]:
            if not hits or (write is not None and write.version == hits[0].version):
                absent = [key for key in ranks if key not in self._shown]
                certain = [key for key in absent if _certain(name, key, ranks, self._k, self._states)]
                beside = [key for key in absent if key not in certain and (not self._cutoff or key < self._cutoff)]
                choices.append((len(certain) + len(beside), certain, beside))
        if choices:
            _, certain, beside = min(choices)
            self._certain += certain
            self._beside += beside

    def missing(self) -> int:
        """Rows that are certain, or that find a place among the best k beside all that is shown and owed."""
        best = sorted([*self._shown, *self._certain, *self._beside])[: self._k]
        return len(self._certain) + len(set(best).intersection(self._beside))


def _certain(name: str, key: Key, own: Ranks, k: int, states: States) -> bool:
    """Whether a row is among the best k whatever allowed version each other document is shown at."""
    better = bisect_left(own, key)
    for other, versions in states.items():
        if better >= k:
            return False
        if other != name:
            better += max((bisect_left(ranks, key) for _, ranks in versions), default=0)
    return better < k


def _ranks(query: int, write: Write) -> Ranks:
    return tuple(
        sorted(rank(query, write.document_id, ordinal, content) for ordinal, content in enumerate(write.contents))
    )
