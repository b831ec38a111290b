"""Global transaction ids, and sets of them as intervals per source.

A gtid (source, seq) names one immutable write batch of one shard. What a replica has applied is a set of gtids; sets
are compared by containment (MySQL's GTID sets, DottedDB's node clocks), so a difference says exactly what is missing.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from types import MappingProxyType

Span = tuple[int, int]
Spans = tuple[Span, ...]


@dataclass(frozen=True, slots=True, order=True)
class Gtid:
    """One write batch: `source` is the coordinator's 64-bit boot id, `seq` counts 1, 2, 3 ... per shard."""

    source: int
    seq: int


class GtidSet:
    """An immutable set of gtids: per source, sorted disjoint inclusive (first, last) spans that never touch."""

    __slots__ = ("_digest", "_sources")
    EMPTY: GtidSet

    def __init__(self, sources: Mapping[int, Spans] | None = None) -> None:
        """Trusts `sources` to be canonical; `from_intervals` is for anything that came from outside."""
        self._sources: dict[int, Spans] = dict(sources) if sources else {}
        self._digest: bytes | None = None

    @classmethod
    def of(cls, *gtids: Gtid) -> GtidSet:
        """The set of the given gtids, in any order."""
        grouped: dict[int, list[Span]] = {}
        for gtid in gtids:
            grouped.setdefault(gtid.source, []).append((gtid.seq, gtid.seq))
        return cls({source: _canonical(spans) for source, spans in grouped.items()})

    @classmethod
    def from_intervals(cls, intervals: Mapping[int, Iterable[Span]]) -> GtidSet:
        """The set of these inclusive spans, in any order. Raises ValueError on an impossible span or source."""
        sources: dict[int, Spans] = {}
        for source, spans in intervals.items():
            if not 0 <= source < 1 << 64:
                raise ValueError(f"gtid source {source} is not an unsigned 64-bit number")
            checked = list(spans)
            for first, last in checked:
                if not 1 <= first <= last < 1 << 63:
                    raise ValueError(f"gtid interval {first}..{last} is not ascending from 1")
            if checked:
                sources[source] = _canonical(checked)
        return cls(sources)

    def intervals(self) -> Mapping[int, Spans]:
        """Source -> sorted disjoint inclusive spans."""
        return MappingProxyType(self._sources)

    def add(self, gtid: Gtid) -> GtidSet:
        """This set and `gtid`."""
        spans = self._sources.get(gtid.source)
        if not spans:
            return GtidSet({**self._sources, gtid.source: ((gtid.seq, gtid.seq),)})
        first, last = spans[-1]
        if gtid.seq == last + 1:
            return GtidSet({**self._sources, gtid.source: (*spans[:-1], (first, gtid.seq))})
        if gtid in self:
            return self
        return GtidSet({**self._sources, gtid.source: _canonical([*spans, (gtid.seq, gtid.seq)])})

    def union(self, other: GtidSet) -> GtidSet:
        """Everything in either."""
        if self is other or not other._sources:
            return self
        if not self._sources:
            return other
        merged = dict(self._sources)
        for source, spans in other._sources.items():
            mine = merged.get(source)
            merged[source] = spans if mine is None else mine if mine == spans else _canonical([*mine, *spans])
        return GtidSet(merged)

    def difference(self, other: GtidSet) -> GtidSet:
        """What is here and not in `other`."""
        if self is other:
            return GtidSet.EMPTY
        left: dict[int, Spans] = {}
        for source, spans in self._sources.items():
            theirs = other._sources.get(source)
            rest = spans if not theirs else () if theirs == spans else _subtract(spans, theirs)
            if rest:
                left[source] = rest
        return GtidSet(left)

    def intersection(self, other: GtidSet) -> GtidSet:
        """What is in both."""
        return self if self is other else self.difference(self.difference(other))

    def issuperset(self, other: GtidSet) -> bool:
        """Whether everything in `other` is here."""
        if self is other:
            return True
        for source, spans in other._sources.items():
            mine = self._sources.get(source)
            if mine is None:
                return False
            if mine != spans and _subtract(spans, mine):
                return False
        return True

    @staticmethod
    def at_least(sets: Sequence[GtidSet], count: int) -> GtidSet:
        """Every gtid that stands in at least `count` of `sets`."""
        assert count >= 1
        if count > len(sets):
            return GtidSet.EMPTY
        head = sets[0]
        if all(other is head or other == head for other in sets[1:]):
            return head
        found: dict[int, Spans] = {}
        for source in {source for held in sets for source in held._sources}:
            spans = _at_least([held._sources[source] for held in sets if source in held._sources], count)
            if spans:
                found[source] = spans
        return GtidSet(found)

    def digest(self) -> bytes:
        """Eight bytes that are equal exactly when the sets are (BLAKE2b over a canonical form)."""
        if self._digest is None:
            state = blake2b(digest_size=8)
            for source in sorted(self._sources):
                spans = self._sources[source]
                state.update(struct.pack("<QI", source, len(spans)))
                for first, last in spans:
                    state.update(struct.pack("<QQ", first, last))
            self._digest = state.digest()
        return self._digest

    def __contains__(self, gtid: object) -> bool:
        if not isinstance(gtid, Gtid):
            return False
        spans = self._sources.get(gtid.source, ())
        low, high = 0, len(spans)
        while low < high:
            middle = (low + high) // 2
            if spans[middle][1] < gtid.seq:
                low = middle + 1
            else:
                high = middle
        return low < len(spans) and spans[low][0] <= gtid.seq

    def __iter__(self) -> Iterator[Gtid]:
        for source in sorted(self._sources):
            for first, last in self._sources[source]:
                for seq in range(first, last + 1):
                    yield Gtid(source, seq)

    def __len__(self) -> int:
        return sum(last - first + 1 for spans in self._sources.values() for first, last in spans)

    def __bool__(self) -> bool:
        return bool(self._sources)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, GtidSet) and self._sources == other._sources

    def __hash__(self) -> int:
        return hash(self.digest())

    def __repr__(self) -> str:
        parts = (
            f"{source:x}:{','.join(f'{a}-{b}' for a, b in spans)}" for source, spans in sorted(self._sources.items())
        )
        return f"GtidSet({' '.join(parts)})"


GtidSet.EMPTY = GtidSet()


def _canonical(spans: Iterable[Span]) -> Spans:
    """Sorted, and joined where they overlap or touch."""
    joined: list[Span] = []
    for first, last in sorted(spans):
        if joined and first <= joined[-1][1] + 1:
            if last > joined[-1][1]:
                joined[-1] = (joined[-1][0], last)
        else:
            joined.append((first, last))
    return tuple(joined)


def _subtract(spans: Spans, theirs: Spans) -> Spans:
    """`spans` without `theirs`; both canonical. One pass."""
    left: list[Span] = []
    index = 0
    for first, last in spans:
        start = first
        while index < len(theirs) and theirs[index][1] < start:
            index += 1
        probe = index
        while probe < len(theirs) and theirs[probe][0] <= last:
            if theirs[probe][0] > start:
                left.append((start, theirs[probe][0] - 1))
            start = max(start, theirs[probe][1] + 1)
            probe += 1
        if start <= last:
            left.append((start, last))
    return tuple(left)


def _at_least(columns: Sequence[Spans], count: int) -> Spans:
    """Where at least `count` of `columns` overlap: a sweep over the ends of their spans."""
    if len(columns) < count:
        return ()
    if all(spans == columns[0] for spans in columns):
        return columns[0]
    edges: list[tuple[int, int]] = []
    for spans in columns:
        for first, last in spans:
            edges.append((first, 1))
            edges.append((last + 1, -1))
    edges.sort()
    found: list[Span] = []
    depth, start, index = 0, 0, 0
    while index < len(edges):
        at, before = edges[index][0], depth
        while index < len(edges) and edges[index][0] == at:
            depth += edges[index][1]
            index += 1
        if before < count <= depth:
            start = at
        elif depth < count <= before:
            found.append((start, at - 1))
    return _canonical(found)
