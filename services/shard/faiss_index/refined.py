"""Candidates re-ranked with raw vectors: what a segment searches.

FAISS's `IndexRefine` does both in one call, without a Python object per candidate: 200 candidates of 200k x 64 rows are
re-ranked at the cost of the bare search plus some 10 microseconds.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from services.shard.faiss_index import given_lists
from services.shard.faiss_index.candidates import CandidateIndex, selector_of
from services.shard.faiss_index.kinds import Kind
from services.shard.faiss_index.library import Bitmap, Floats, Positions, contiguous, faiss
from services.shard.faiss_index.raw import RawVectors

KNOWN_MAX = 64


class RefinedIndex:
    """Candidate index and raw vectors over the same positions. Searched by many threads, never changed."""

    def __init__(self, index: CandidateIndex | None, raw: RawVectors) -> None:
        """`index` None: every row is a candidate. Raises ValueError when the two differ in rows or dimensions."""
        if index is not None and (index.rows, index.dim) != (raw.rows, raw.dim):
            raise ValueError(
                f"the index holds {index.rows} rows of {index.dim} dimensions, the raw vectors {raw.rows} of {raw.dim}"
            )
        self.index = index
        self.raw = raw
        base = None if index is None or not raw.rows else index.base()
        self._known: dict[tuple[int, int, int], Any] = {}
        self._refine = None if base is None else faiss.IndexRefine(base, raw.index)
        self.names_lists = index is not None and self._refine is not None and index.names_lists
        """Whether `search_lists` can be used."""

    def search(
        self, queries: Floats, count: int, candidates: int, effort: int, alive: Bitmap | None
    ) -> tuple[Floats, Positions]:
        """(scores float32, positions), both (n, count), best first; -1 and -inf where nothing more was found.

        The best `count` of `candidates` that a search of that effort finds among rows whose bit in `alive` is set
        (None: all). Scores are exact but for float32 rounding.
        """
        lines = contiguous(queries)
        depth = min(count, self.raw.rows)
        if depth and len(lines):
            scores, found = self._search(lines, depth, min(max(candidates, depth), self.raw.rows), effort, alive)
            if depth == count and found[:, -1].min() >= 0:
                return scores, found
        else:
            scores, found = np.empty((len(lines), 0), dtype=np.float32), np.empty((len(lines), 0), dtype=np.int64)
        result = np.full((len(lines), count), -np.inf, dtype=np.float32), np.full((len(lines), count), -1, np.int64)
        result[0][:, :depth] = np.where(found >= 0, scores, -np.inf)
        result[1][:, :depth] = found
        return result

    def search_lists(
        self, query: Floats, count: int, candidates: int, lists: Positions, alive: Bitmap | None
    ) -> tuple[Floats, Positions]:
        """`search` of one query (1, dim) in the inverted lists (n,) that are named; what was not found is left out."""
        assert self._refine is not None, "the kind has lists that can be named"
        depth = min(count, self.raw.rows)
        given = given_lists.parameters(depth, min(max(candidates, depth), self.raw.rows), len(lists))
        given.lists[:] = lists
        given.inverted.sel = selector_of(alive)
        scores, found = self._refine.search(query, depth, params=given.refine)
        given.inverted.sel = None  # parameters outlive the view
        held = depth if found[0, -1] >= 0 else int((found[0] >= 0).sum())
        return scores[0, :held], np.asarray(found[0, :held], dtype=np.int64)

    def _search(
        self, lines: Floats, count: int, candidates: int, effort: int, alive: Bitmap | None
    ) -> tuple[Floats, Positions]:
        if self.index is None or self.index.kind is Kind.FLAT:
            return self.raw.search(lines, count, alive)
        if self._refine is None:
            return self.raw.best_of(lines, self.index.search(lines, candidates, effort, alive), count)
        effort = max(effort, candidates) if self.index.kind is Kind.HNSW else effort
        if alive is None:
            parameters = self._parameters(count, candidates, effort)
        else:
            selector = selector_of(alive)  # kept until the search is over
            parameters = given_lists.refining(count, candidates, self.index.parameters(effort, selector))
        scores, found = self._refine.search(lines, count, params=parameters)
        return scores, np.asarray(found, dtype=np.int64)

    def _parameters(self, count: int, candidates: int, effort: int) -> Any:
        """Making them costs a fifth of a small search; those without a selector can be shared."""
        assert self.index is not None, "only an index has parameters"
        key = (count, candidates, effort)
        found = self._known.get(key)
        if found is None:
            if len(self._known) >= KNOWN_MAX:
                self._known.clear()
            found = self._known[key] = given_lists.refining(count, candidates, self.index.parameters(effort, None))
        return found
