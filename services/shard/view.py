"""The view: one committed state of a replica, immutable, swapped as a whole.

A view couples the applied set with exactly the rows it describes. A commit derives the next view by copying the few
bitmaps it touches; a search keeps the view it began with, so an updated row never vanishes from it half way.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from services.quorum.gtid import GtidSet
from services.shard import alive as bits
from services.shard.analyzer import RowTerms
from services.shard.damage import RowName
from services.shard.delta import Delta
from services.shard.segment import FLAT, Segment

DIGEST_MODULUS = 1 << 128
PIECE_ROWS = 1 << 16
"""Looked up at once, in the writer thread: a multiple of 8."""


@dataclass(frozen=True, slots=True)
class Part:
    """A segment together with the rows of it that are alive in one view."""

    segment: Segment
    alive: NDArray[np.uint8]
    live: int

    @property
    def dead(self) -> int:
        return self.segment.rows - self.live

    @property
    def selector(self) -> NDArray[np.uint8] | None:
        """The bitmap for FAISS; None while every row is alive, which is faster."""
        return self.alive if self.dead else None

    def without(self, rids: NDArray[np.int64]) -> Part:
        """The part with `rids` dead; unknown ones are ignored."""
        positions = self.segment.positions(rids)
        if not len(positions):
            return self
        alive = bits.cleared(self.alive, positions)
        return Part(self.segment, alive, bits.count(alive))

    @classmethod
    def of(cls, segment: Segment, live_rids: NDArray[np.int64]) -> Part:
        """A part in which exactly the rows in `live_rids` are alive."""
        return cls.among(segment, [live_rids])

    @classmethod
    def among(cls, segment: Segment, live_rids: Iterable[NDArray[np.int64]]) -> Part:
        """The same with the rows that live in pieces, of which one is held at a time."""
        mask = np.zeros(segment.rows, dtype=np.bool_)
        for rids in live_rids:
            mask[segment.positions(rids)] = True
        return cls(segment, bits.from_mask(mask), int(mask.sum()))

    def live_rids(self) -> NDArray[np.int64]:
        return np.concatenate([np.empty(0, dtype=np.int64), *self.live_pieces()])

    def live_pieces(self) -> Iterator[NDArray[np.int64]]:
        """`live_rids` in pieces that cost little memory."""
        for start in range(0, self.segment.rows, PIECE_ROWS):
            rids = self.segment.rids[start : start + PIECE_ROWS]
            yield rids[bits.to_mask(self.alive[start // 8 :], len(rids))]


@dataclass(frozen=True, slots=True)
class Change:
    """What one commit did to the live rows."""

    dead: NDArray[np.int64]
    """rids that are no longer live."""
    born: NDArray[np.int64]
    """rids that became live."""
    vectors: NDArray[np.float16]
    """(len(born), dim)."""
    digest: int
    """To add to the digest, modulo 2**128."""
    documents: int
    """To add to the number of live documents."""
    damaged: tuple[RowName, ...] = ()
    """Rows that should have become live but fail their checksum."""
    terms: Sequence[RowTerms] | None = None
    """Of each born row; None: rows without words."""


@dataclass(frozen=True, slots=True)
class View:
    """One committed state: applied set, live rows, and their digest."""

    number: int
    applied: GtidSet
    hlc_max: int
    parts: tuple[Part, ...]
    delta: Delta
    digest: int
    documents_live: int
    index_epoch: str

    @property
    def rows_live(self) -> int:
        return self.delta.live + sum(part.live for part in self.parts)

    @property
    def rows_dead(self) -> int:
        return self.delta.dead + sum(part.dead for part in self.parts)

    @property
    def digest_bytes(self) -> bytes:
        return self.digest.to_bytes(16, "big")

    def live_rids(self) -> NDArray[np.int64]:
        """Every live rid, ascending."""
        delta = self.delta.rids[self.delta.live_positions()]
        return np.sort(np.concatenate([delta, *(part.live_rids() for part in self.parts)]))

    def committed(self, applied: GtidSet, hlc_max: int, change: Change) -> View:
        """The view after one commit."""
        return replace(
            self,
            number=self.number + 1,
            applied=applied,
            hlc_max=hlc_max,
            parts=tuple(part.without(change.dead) for part in self.parts) if len(change.dead) else self.parts,
            delta=self.delta.without(change.dead).plus(change.born, change.vectors, change.terms),
            digest=(self.digest + change.digest) % DIGEST_MODULUS,
            documents_live=self.documents_live + change.documents,
            index_epoch=index_epoch(self.parts, applied),
        )

    def sealed(self, segment: Segment, replaced: frozenset[str]) -> View:
        """The view in which `segment` takes the place of the segments named and of its rows in the delta.

        A row that died while the segment was being built is dead in the new bitmap: only what is alive in *this*
        view is alive in the next.
        """
        kept = tuple(part for part in self.parts if part.segment.name not in replaced)
        gone = chain.from_iterable(part.live_pieces() for part in self.parts if part.segment.name in replaced)
        part = Part.among(segment, chain([self.delta.rids[self.delta.live_positions()]], gone))
        parts = tuple(sorted((*kept, part), key=lambda p: (-p.segment.rows, p.segment.name)))
        outside = ~segment.holds(self.delta.rids)
        return replace(
            self,
            number=self.number + 1,
            parts=parts,
            delta=self.delta.compacted(outside),
            index_epoch=index_epoch(parts, self.applied),
        )

    def without_part(self, name: str) -> View:
        """The view without a segment in which nothing lives."""
        assert not any(part.live for part in self.parts if part.segment.name == name), f"{name} has live rows"
        parts = tuple(part for part in self.parts if part.segment.name != name)
        return replace(self, number=self.number + 1, parts=parts, index_epoch=index_epoch(parts, self.applied))


def index_epoch(parts: tuple[Part, ...], applied: GtidSet) -> str:
    """Codec generation of the largest segment, a hyphen, short hash of the applied set."""
    codec = max(parts, key=lambda part: part.segment.rows).segment.manifest.codec if parts else FLAT
    return f"{codec}-{applied.digest().hex()[:8]}"
