"""The delta: rows that no segment holds yet, searched exactly.

One append-only float32 block is shared by successive deltas. A delta reads only its first `length` rows and its own
bitmap, so a search that began with an older delta never sees an appended row and never loses one that died since.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.shard import alive as bits
from services.shard import heap
from services.shard.analyzer import NO_TERMS, RowTerms
from services.shard.lexical_delta import LexicalDelta

CAPACITY_MIN = 256


class Block:
    """Append-only storage: vectors float32 (capacity, dim) and rids int64 (capacity,). One writer."""

    __slots__ = ("rids", "used", "vectors")

    def __init__(self, dim: int, capacity: int) -> None:
        self.vectors = heap.rows_of_zeros(capacity, dim)
        self.rids = np.empty(capacity, dtype=np.int64)
        self.used = 0

    @property
    def capacity(self) -> int:
        return len(self.rids)

    def append(self, rids: NDArray[np.int64], vectors: NDArray[np.float16]) -> None:
        end = self.used + len(rids)
        assert end <= self.capacity, "a block is never filled beyond its capacity"
        self.vectors[self.used : end] = vectors
        self.rids[self.used : end] = rids
        self.used = end


@dataclass(frozen=True, slots=True)
class Delta:
    """An immutable window on a block: its first `length` rows, of which `live` are alive."""

    block: Block
    length: int
    alive: NDArray[np.uint8]
    live: int
    lexical: LexicalDelta
    """Postings of the same rows, dead ones included."""

    @classmethod
    def empty(cls, dim: int) -> Delta:
        return cls.of(np.empty(0, dtype=np.int64), np.empty((0, dim), dtype=np.float16))

    @classmethod
    def of(
        cls,
        rids: NDArray[np.int64],
        vectors: NDArray[np.float16] | NDArray[np.float32],
        lexical: LexicalDelta | None = None,
    ) -> Delta:
        """A fresh delta of live rows: rids (n,), vectors (n, dim) that are float16 values in either width.

        `lexical` None: rows without words.
        """
        lexical = LexicalDelta.empty().plus([NO_TERMS] * len(rids)) if lexical is None else lexical
        assert len(lexical.lengths) == len(rids), "a row has a vector and terms"
        block = Block(vectors.shape[1], max(CAPACITY_MIN, len(rids) * 3 // 2))
        block.append(rids, vectors)  # type: ignore[arg-type] # float16 or float32, stored as float32 either way
        return cls(block, len(rids), bits.extended(np.empty(0, dtype=np.uint8), 0, len(rids)), len(rids), lexical)

    @property
    def rids(self) -> NDArray[np.int64]:
        return self.block.rids[: self.length]

    @property
    def vectors(self) -> NDArray[np.float32]:
        return self.block.vectors[: self.length]

    @property
    def dead(self) -> int:
        return self.length - self.live

    def live_positions(self) -> NDArray[np.int64]:
        return np.flatnonzero(bits.to_mask(self.alive, self.length)).astype(np.int64)

    def without(self, rids: NDArray[np.int64]) -> Delta:
        """The delta with `rids` dead; unknown ones are ignored."""
        if not len(rids) or not self.live:
            return self
        mask = bits.to_mask(self.alive, self.length) & np.isin(self.rids, rids)
        gone = np.flatnonzero(mask).astype(np.int64)
        if not len(gone):
            return self
        return Delta(self.block, self.length, bits.cleared(self.alive, gone), self.live - len(gone), self.lexical)

    def plus(
        self, rids: NDArray[np.int64], vectors: NDArray[np.float16], terms: Sequence[RowTerms] | None = None
    ) -> Delta:
        """The delta with live rows appended. Only the newest delta of a block may be extended.

        `terms`: of each row; None: rows without words.
        """
        if not len(rids):
            return self
        assert self.block.used == self.length, "only the newest delta of a block is extended"
        if self.length + len(rids) > self.block.capacity:
            return self._moved(len(rids)).plus(rids, vectors, terms)
        self.block.append(rids, vectors)
        grown = bits.extended(self.alive, self.length, len(rids))
        lexical = self.lexical.plus([NO_TERMS] * len(rids) if terms is None else terms)
        assert len(lexical.lengths) == self.block.used, "a row has a vector and terms"
        return Delta(self.block, self.length + len(rids), grown, self.live + len(rids), lexical)

    def compacted(self, keep: NDArray[np.bool_]) -> Delta:
        """A fresh delta of the live rows for which `keep` (one boolean per position) holds."""
        kept = bits.to_mask(self.alive, self.length) & keep
        return Delta.of(self.rids[kept], self.vectors[kept], self.lexical.compacted(np.flatnonzero(kept)))

    def _moved(self, room: int) -> Delta:
        """The live rows in a larger block, with space for `room` more."""
        positions = self.live_positions()
        block = Block(self.vectors.shape[1], max(CAPACITY_MIN, 2 * (len(positions) + room)))
        # Not by way of a copy; "raise" would buffer one.
        np.take(self.vectors, positions, axis=0, out=block.vectors[: len(positions)], mode="clip")
        block.rids[: len(positions)] = self.rids[positions]
        block.used = len(positions)
        fresh = bits.extended(np.empty(0, dtype=np.uint8), 0, len(positions))
        return Delta(block, len(positions), fresh, len(positions), self.lexical.compacted(positions))
