"""One part of a view as lexical search sees it: postings, lengths and the alive bitmap it shares with the vectors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.shard import alive as bits
from services.shard.lexical_postings import Postings


@dataclass(frozen=True, slots=True)
class LexicalPart:
    """The delta or a segment. Positions are 0 .. rows - 1."""

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

    def mask(self) -> NDArray[np.bool_] | None:
        """One boolean per position; None while every row is alive."""
        return None if self.live == self.rows else bits.to_mask(self.alive, self.rows)

    def positions(self, rids: NDArray[np.int64]) -> NDArray[np.int64]:
        """The position of each of `rids`, -1 for one that is not here."""
        if not self.rows:
            return np.full(len(rids), -1, dtype=np.int64)
        order = np.argsort(self.rids, kind="stable") if self.order is None else self.order
        found = order[np.minimum(np.searchsorted(self.rids, rids, sorter=order), self.rows - 1)]
        return np.where(self.rids[found] == rids, found, -1)
