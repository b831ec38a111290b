"""Searching inverted lists that the caller names.

The segments of a replica mostly share one codec, and finding the nearest of 2,048 centroids takes four fifths of a
search of 40,000 rows. So it is done once for all of them. FAISS's `search_preassigned` cannot re-rank in the same call;
instead its own look at the centroids is confined to the named ones.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from services.shard.faiss_index.library import Positions, faiss

KEPT_MAX = 64
_THREAD = threading.local()


class Parameters:
    """Search parameters of one thread, made once: with as many objects of their own they cost a search's time again."""

    def __init__(self, count: int, candidates: int, lists: int) -> None:
        self.lists: Positions = np.zeros(lists, dtype=np.int64)
        """Written before each search; FAISS reads them in place."""
        self._named = faiss.IDSelectorArray(lists, faiss.swig_ptr(self.lists))
        self._quantizer = faiss.SearchParameters(sel=self._named)
        self.inverted = faiss.SearchParametersIVF(nprobe=lists, quantizer_params=self._quantizer)
        self.refine = refining(count, candidates, self.inverted)


def refining(count: int, candidates: int, base: Any) -> Any:
    """Parameters for the best `count` of `candidates` that a search with the parameters `base` finds."""
    # FAISS takes int(count * k_factor) in float32: half a row more survives the rounding.
    return faiss.IndexRefineSearchParameters(k_factor=(candidates + 0.5) / count, base_index_params=base)


def parameters(count: int, candidates: int, lists: int) -> Parameters:
    """The calling thread's own, which nothing else uses until its next call."""
    known: dict[tuple[int, int, int], Parameters] | None = getattr(_THREAD, "known", None)
    if known is None:
        known = _THREAD.known = {}
    key = (count, candidates, lists)
    found = known.get(key)
    if found is None:
        if len(known) >= KEPT_MAX:
            known.clear()
        found = known[key] = Parameters(count, candidates, lists)
    return found
