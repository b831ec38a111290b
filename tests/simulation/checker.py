"""Judges a history. Pure; versions are visible, so nothing has to be searched for.

- C1   a QUORUM search shows each document at a version no older than the newest one acknowledged before it began.
- C1'  a document that every allowed version ranks among the best k is found.
- C2   a SESSION search never goes behind what its session wrote or saw.
- C3   a write invoked after another was acknowledged has the higher version.
- C4   after healing, voters are equal and hold every acknowledged write; equal applied sets mean equal content always.
- C5   nothing is found that was not written.
- C6   lookups at LINEARIZABLE and writes have one order that agrees with real time: what such a lookup returned counts
       as acknowledged from then on, for every later read and write. Versions are visible, so this is all of it.
- C7   a result never mixes two versions of a document, and shows all of its passages that rank high enough.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from services.quorum.clock import Version
from tests.simulation.history import History, Hit, Level, Search, Violation, Write, score

Key = tuple[float, str, int]
"""Rank of a passage: smaller is better."""
Rank = Callable[[int, str, int, bytes], Key]
"""(query, document, ordinal, content) to the rank that a passage has in a search."""


def rank(query: int, document_id: str, ordinal: int, content: bytes) -> Key:
    """The order in which a search returns passages."""
    return (-score(query, content), document_id, ordinal)


def check(history: History, order: Rank = rank) -> list[Violation]:
    """Every broken promise of a history. `order`: how the searched system ranks; simulated replicas do it by `rank`."""
    documents: dict[str, list[Write]] = defaultdict(list)
    for write in history.writes:
        if write.version is not None:
            documents[write.document_id].append(write)
    for writes in documents.values():
        writes.sort(key=lambda write: write.version or Version.ZERO)
    returned = _returned(history.searches)
    acked = {document_id: _AckedFloor(writes, returned[document_id]) for document_id, writes in documents.items()}
    sessions = _SessionFloors(history.writes)
    found: list[Violation] = []
    for search in sorted(history.searches, key=lambda search: search.returned_us):
        found += _check_search(search, documents, acked, sessions, order)
        sessions.saw(search)
    found += _check_order(documents, acked)
    found += _check_final(history, documents)
    return found


def _returned(searches: Iterable[Search]) -> Mapping[str, list[tuple[int, Version]]]:
    """When a lookup at LINEARIZABLE returned which version, by document."""
    found: dict[str, list[tuple[int, Version]]] = defaultdict(list)
    for search in searches:
        if search.level is Level.LINEARIZABLE and search.hits:
            found[search.hits[0].document_id].append((search.returned_us, search.hits[0].version))
    return found


class _AckedFloor:
    """The newest version of one document acknowledged, or returned at LINEARIZABLE, before a moment."""

    def __init__(self, writes: Sequence[Write], returned: Iterable[tuple[int, Version]]) -> None:
        written = [(write.acked_us, write.version) for write in writes if write.acked_us is not None and write.version]
        acked = sorted([*written, *returned])
        self._times = [at for at, _ in acked]
        self._highest: list[Version] = []
        for _, version in acked:
            self._highest.append(max(version, self._highest[-1]) if self._highest else version)

    def before(self, at_us: int) -> Version:
        index = bisect_left(self._times, at_us)
        return self._highest[index - 1] if index else Version.ZERO


class _SessionFloors:
    """What each session wrote or saw, by document. Sessions act one operation after the other."""

    def __init__(self, writes: Iterable[Write]) -> None:
        self._seen: dict[tuple[int, str], Version] = {}
        self._writes: dict[tuple[int, str], list[Write]] = defaultdict(list)
        for write in writes:
            if write.acked_us is not None:
                self._writes[write.session, write.document_id].append(write)

    def floor(self, session: int, document_id: str, at_us: int) -> Version:
        own = [
            write.version
            for write in self._writes.get((session, document_id), ())
            if write.version and write.acked_us is not None and write.acked_us < at_us
        ]
        return max([self._seen.get((session, document_id), Version.ZERO), *own])

    def saw(self, search: Search) -> None:
        for hit in search.hits:
            key = (search.session, hit.document_id)
            self._seen[key] = max(self._seen.get(key, Version.ZERO), hit.version)


def _check_search(
    search: Search,
    documents: Mapping[str, Sequence[Write]],
    acked: Mapping[str, _AckedFloor],
    sessions: _SessionFloors,
    order: Rank,
) -> Iterator[Violation]:
    hits: dict[str, list[Hit]] = defaultdict(list)
    for hit in search.hits:
        hits[hit.document_id].append(hit)
    keys = [order(search.query, hit.document_id, hit.ordinal, hit.content) for hit in search.hits]
    label = f"{search.level.value} search of session {search.session} at {search.invoked_us}..{search.returned_us} us"
    if keys != sorted(set(keys)) or len(keys) > search.k:
        yield Violation("C5", f"{label}: hits are doubled, out of order or too many")
    cutoff = keys[-1] if len(keys) >= search.k else None
    asked = [document_id for document_id in documents if search.only in (None, document_id)]
    for document_id in hits.keys() - set(asked):
        yield Violation("C5", f"{label}: {document_id} was never written or not asked for")
    for document_id in asked:
        writes = documents[document_id]
        if search.level in (Level.QUORUM, Level.LINEARIZABLE):
            floor = acked[document_id].before(search.invoked_us)
        elif search.level is Level.SESSION:
            floor = sessions.floor(search.session, document_id, search.invoked_us)
        else:
            floor = Version.ZERO
        found = hits.get(document_id, ())
        yield from _check_document(search, writes, found, floor, cutoff, f"{label}, {document_id}", order)


def _check_document(
    search: Search,
    writes: Sequence[Write],
    hits: Sequence[Hit],
    floor: Version,
    cutoff: Key | None,
    label: str,
    order: Rank,
) -> Iterator[Violation]:
    stale = {Level.SESSION: "C2", Level.LINEARIZABLE: "C6"}.get(search.level, "C1")
    if not hits:
        if floor > Version.ZERO and not _may_be_absent(search, writes, floor, cutoff, order):
            yield Violation("C1'" if stale == "C1" else stale, f"{label}: missing, although at least {floor} was owed")
        return
    versions = {hit.version for hit in hits}
    if len(versions) > 1:
        yield Violation("C7", f"{label}: versions {sorted(versions)} are mixed")
        return
    version = hits[0].version
    write = _of_version(writes, version)
    if write is None or write.invoked_us >= search.returned_us:
        yield Violation("C5", f"{label}: {version} was never written")
        return
    if any(hit.ordinal >= len(write.contents) or write.contents[hit.ordinal] != hit.content for hit in hits):
        yield Violation("C5", f"{label}: content is not that of {version}")
        return
    if version < floor:
        yield Violation(stale, f"{label}: {version} was found, {floor} was owed")
    if {hit.ordinal for hit in hits} != _expected(search, write, cutoff, order):
        yield Violation("C7", f"{label}: {version} is not shown with all its passages")


def _of_version(writes: Sequence[Write], version: Version) -> Write | None:
    """The write of that version; `writes` ascend."""
    index = bisect_left(writes, version, key=lambda write: write.version or Version.ZERO)
    return writes[index] if index < len(writes) and writes[index].version == version else None


def _may_be_absent(search: Search, writes: Sequence[Write], floor: Version, cutoff: Key | None, order: Rank) -> bool:
    """Whether some version the search was allowed to show has no passage among the best k."""
    oldest = bisect_left(writes, floor, key=lambda write: write.version or Version.ZERO)
    for index in range(oldest, len(writes)):  # the oldest first: it is the likeliest, and a long run has many newer
        write = writes[index]
        if write.invoked_us < search.returned_us and not _expected(search, write, cutoff, order):
            return True
    return False


def _expected(search: Search, write: Write, cutoff: Key | None, order: Rank) -> set[int]:
    """Ordinals of a version that rank at or above the last hit; all of them if fewer than k were found."""
    if cutoff is None:
        return set(range(len(write.contents)))
    return {
        ordinal
        for ordinal, content in enumerate(write.contents)
        if order(search.query, write.document_id, ordinal, content) <= cutoff
    }


def _check_order(documents: Mapping[str, Sequence[Write]], acked: Mapping[str, _AckedFloor]) -> Iterator[Violation]:
    for document_id, writes in documents.items():
        if len({write.version for write in writes}) != len(writes):
            yield Violation("C3", f"{document_id}: two writes share a version")
        for write in writes:
            before = acked[document_id].before(write.invoked_us)
            if write.version and write.version <= before:
                yield Violation("C3", f"{document_id}: {write.version} was invoked after {before} was acknowledged")


def _check_final(history: History, documents: Mapping[str, Sequence[Write]]) -> Iterator[Violation]:
    if history.frozen:
        yield Violation("C4", "the shard did not get its members back after healing")
    for states in history.views.values():
        if len(states) > 1:
            yield Violation("C4", f"{' and '.join(states.values())} published different rows with equal applied sets")
    if len({(replica.applied, replica.live) for replica in history.final}) > 1:
        names = ", ".join(replica.name for replica in history.final)
        yield Violation("C4", f"{names} did not become equal after healing")
    for document_id, writes in documents.items():
        known = {write.version for write in writes}
        newest = max((write.version for write in writes if write.acked_us is not None and write.version), default=None)
        deletes = [write.version for write in writes if write.version and not write.contents]
        for replica in history.final:
            head = replica.heads.get(document_id)
            if head is None and any((newest or Version.ZERO) <= version <= replica.floor for version in deletes):
                continue  # a tombstone as old may be forgotten
            if newest is not None and (head is None or head < newest):
                yield Violation("C4", f"{replica.name} lost {document_id}: head {head}, acknowledged {newest}")
            if head is not None and head not in known:
                yield Violation("C5", f"{replica.name} has {document_id} at {head}, which was never written")
