"""Brute force over rows in memory some of which are dead: how the delta is searched."""

from __future__ import annotations

import numpy as np

from services.shard.faiss_index.library import Bitmap, Floats, Positions, contiguous, faiss


def nearest_living(queries: Floats, vectors: Floats, count: int, alive: Bitmap | None) -> tuple[Floats, Positions]:
    """Exact inner-product search of float32 queries (n, dim) over rows (m, dim), in the calling thread.

    Returns (scores, positions), both (n, min(count, m)), best first, then -1, of rows whose bit in `alive` is set
    (None: all).
    """
    rows, dim = vectors.shape
    count = min(count, rows)
    scores = np.empty((len(queries), count), dtype=np.float32)
    found = np.empty((len(queries), count), dtype=np.int64)
    lines = contiguous(queries)
    selector = None if alive is None else faiss.IDSelectorBitmap(alive)
    faiss.knn_inner_product(
        *(faiss.swig_ptr(lines), faiss.swig_ptr(vectors), dim, len(lines), rows, count),
        *(faiss.swig_ptr(scores), faiss.swig_ptr(found), selector),
    )
    return scores, found
