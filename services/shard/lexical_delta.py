"""The lexical part of the delta: exact postings of rows that no segment holds yet.

A handful of immutable runs, each at least twice as long as the next, so that a commit costs little and a search looks
into few. An older delta keeps its own tuple of runs: nothing a search holds is ever written to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.shard.analyzer import RowTerms
from services.shard.lexical_postings import DROPPED, Moved, Postings, joined, of_rows


@dataclass(frozen=True, slots=True)
class LexicalDelta:
    """Postings by position in the delta, and the number of terms at each position."""

    runs: tuple[Postings, ...]
    lengths: NDArray[np.uint32]
    """(rows,), dead ones included."""

    @classmethod
    def empty(cls) -> LexicalDelta:
        return cls((), np.empty(0, dtype=np.uint32))

    @property
    def bytes(self) -> int:
        return self.lengths.nbytes + sum(run.bytes for run in self.runs)

    def plus(self, rows: Sequence[RowTerms]) -> LexicalDelta:
        """With rows appended."""
        if not rows:
            return self
        runs = [*self.runs, of_rows(rows, len(self.lengths))]
        lengths = np.concatenate([self.lengths, np.array([row.length for row in rows], dtype=np.uint32)])
        while len(runs) > 1 and runs[-2].size <= 2 * runs[-1].size:
            same = np.arange(len(lengths), dtype=np.int64)
            runs[-2:] = [joined([Moved(runs[-2], same), Moved(runs[-1], same)])]
        return LexicalDelta(tuple(runs), lengths)

    def compacted(self, kept: NDArray[np.int64]) -> LexicalDelta:
        """Only the rows at the positions `kept`, ascending, which become 0, 1, 2 ..."""
        moved = np.full(len(self.lengths), DROPPED, dtype=np.int64)
        moved[kept] = np.arange(len(kept), dtype=np.int64)
        run = joined([Moved(run, moved) for run in self.runs])
        return LexicalDelta((run,) if run.size else (), self.lengths[kept])
