"""One part of a view as lexical search sees it: postings, lengths and the alive bitmap it shares with the vectors."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray

from services.shard import alive as bits
from services.shard.lexical_postings import Postings

_SUMS_MAX: Final = 256
_SUMS: Final[dict[int, tuple[weakref.ref[NDArray[np.uint8]], int]]] = {}
"""Live terms by alive bitmap, which never changes: adding up a million lengths would take longer than a search."""


@dataclass(frozen=True)
class LexicalPart:
    """The delta or a segment. Positions are 0 .. rows - 1. Made for one search, which asks for the mask twice."""

    number: int
    """As in `view_search.part_names`: 0 is the delta."""
    runs: tuple[Postings, ...]
    """Of disjoint positions; one for a segment."""
    lengths: NDArray[np.uint32]
    rids: NDArray[np.int64]
    alive: NDArray[np.uint8]
    live: int
    order: NDArray[np.int64] | None = None
    """Positions in ascending order of rid; None: not at hand."""

    @property
    def rows(self) -> int:
        return len(self.lengths)

    @cached_property
    def mask(self) -> NDArray[np.bool_] | None:
        """One boolean per position; None while every row is alive."""
        return None if self.live == self.rows else bits.to_mask(self.alive, self.rows)

    @property
    def tokens(self) -> int:
        """Terms of the live passages, repeated ones counted."""
        return _tokens(self)

    def positions(self, rids: NDArray[np.int64]) -> NDArray[np.int64]:
        """The position of each of `rids`, -1 for one that is not here."""
        if not self.rows:
            return np.full(len(rids), -1, dtype=np.int64)
        order = np.argsort(self.rids, kind="stable") if self.order is None else self.order
        found = order[np.minimum(np.searchsorted(self.rids, rids, sorter=order), self.rows - 1)]
        return np.where(self.rids[found] == rids, found, -1)


def _tokens(part: LexicalPart) -> int:
    known = _SUMS.get(id(part.alive))
    if known is not None and known[0]() is part.alive:
        return known[1]
    lengths = part.lengths if part.mask is None else part.lengths[part.mask]
    tokens = int(lengths.sum(dtype=np.int64))
    if len(_SUMS) >= _SUMS_MAX:
        _SUMS.clear()
    _SUMS[id(part.alive)] = (weakref.ref(part.alive), tokens)
    return tokens
