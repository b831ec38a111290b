"""The history of a run as its clients see it, and what becomes of writes whose version no client was told."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from ostraka.results import Hit as FoundHit
from ostraka.results import Passage
from ostraka.results import Version as ClientVersion
from services.quorum.clock import Version
from tests.chaos.corpus import Corpus
from tests.simulation.history import History, Hit, Level, Search, Write

Stored = tuple[str, bytes, Version]
"""Document, content and version of a passage."""
EVERYTHING = 1_000_000
"""More hits than there can be: a lookup shows all passages."""


def now_us() -> int:
    """Microseconds of the one clock that all clients of a run share."""
    return time.monotonic_ns() // 1_000


@dataclass(slots=True)
class Recorder:
    """Collects operations; `settle` once at the end."""

    corpus: Corpus
    history: History = field(default_factory=History)
    problems: list[str] = field(default_factory=list)
    """What no check of the history looks for."""
    keys: list[tuple[str, Write]] = field(default_factory=list)
    """Idempotency key of every write that had one."""
    _refused: set[int] = field(default_factory=set)
    """Writes of the history, by identity, that are not to be in it."""
    _repeated: dict[int, list[Write]] = field(default_factory=lambda: defaultdict(list))
    """By identity of a write, repetitions of it that became versions of their own."""
    _sighted: dict[tuple[str, bytes], set[Version]] = field(default_factory=lambda: defaultdict(set))
    """(document, content) to the versions in which it was seen."""
    rows_acked: int = 0
    writes_acked: int = 0
    quorum_searches: int = 0

    def begin(self, document_id: str, contents: tuple[bytes, ...], session: int, key: str) -> Write:
        """A write that is about to be sent."""
        write = Write(document_id, contents, session, now_us())
        self.history.writes.append(write)
        if key:
            self.keys.append((key, write))
        return write

    def forget(self, write: Write) -> None:
        """The mesh said for certain that nothing of it will ever appear: whatever does was never written."""
        self._refused.add(id(write))

    def acknowledged(self, write: Write, version: ClientVersion) -> None:
        """Durable and visible from now on."""
        self.told(write, version).acked_us = now_us()
        self.writes_acked += 1
        self.rows_acked += max(1, len(write.contents))

    def told(self, write: Write, version: ClientVersion) -> Write:
        """The version of a write. A repetition under its key may have got another than the first attempt, which may
        exist besides: two writes then."""
        found = Version(version.hlc, version.source)
        if write.version is None:
            write.version = found
        others = self._repeated[id(write)]
        for attempt in (write, *others):
            if attempt.version == found:
                return attempt
        other = Write(write.document_id, write.contents, write.session, write.invoked_us, found)
        self.history.writes.append(other)
        others.append(other)
        return other

    def searched(
        self, level: Level, session: int, query: int, k: int, invoked_us: int, hits: Iterable[FoundHit]
    ) -> None:
        """A search that was answered in full."""
        found = []
        for hit in hits:
            passage = _hit(hit.passage)
            found.append(passage)
            self._see(passage)
            if hit.score != (expected := self.corpus.score(query, passage.content)):
                self.problems.append(f"{passage.document_id}: score {hit.score!r}, computed {expected!r}")
        self.history.searches.append(Search(level, session, query, k, invoked_us, now_us(), tuple(found)))
        self.quorum_searches += level is Level.QUORUM

    def looked_up(
        self, level: Level, session: int, document_id: str, invoked_us: int, passages: Iterable[Passage]
    ) -> None:
        """A read of one document at QUORUM or LINEARIZABLE. It has no ranking: the checker gets one."""
        hits = sorted(
            map(_hit, passages), key=lambda hit: self.corpus.rank(0, hit.document_id, hit.ordinal, hit.content)
        )
        for hit in hits:
            self._see(hit)
        search = Search(level, session, 0, EVERYTHING, invoked_us, now_us(), tuple(hits), document_id)
        self.history.searches.append(search)

    def sighted(self, stored: Iterable[Stored]) -> None:
        """Passages that some replica has, superseded ones included."""
        for document_id, content, version in stored:
            self._sighted[document_id, content].add(version)

    def settle(self, keyed: Mapping[tuple[str, str], frozenset[Version]], stored: Iterable[Stored]) -> None:
        """Give versions to writes whose attempts nobody answered.

        `keyed`: (document, key) to the versions that replicas have of that write. `stored`: the passages they have.
        A content is that of one write, which has one version unless it was repeated under a key. What was seen
        nowhere, neither on a disk during the run nor in an answer, stays without.
        """
        self.sighted(stored)
        self.history.writes = [write for write in self.history.writes if id(write) not in self._refused]
        for key, write in self.keys:
            if id(write) not in self._refused:
                found = keyed.get((write.document_id, key), frozenset()) | self._versions_of(write)
                for version in sorted(found):
                    self.told(write, ClientVersion(version.hlc, version.source))
        for write in self.history.writes:
            if write.version is None:
                write.version = min(self._versions_of(write), default=None)

    def _see(self, hit: Hit) -> None:
        self._sighted[hit.document_id, hit.content].add(hit.version)

    def _versions_of(self, write: Write) -> frozenset[Version]:
        seen = (self._sighted.get((write.document_id, content), ()) for content in write.contents)
        return frozenset().union(*seen)


def _hit(passage: Passage) -> Hit:
    version = Version(passage.version.hlc, passage.version.source)
    return Hit(passage.document_id, passage.ordinal, version, passage.text.encode())
