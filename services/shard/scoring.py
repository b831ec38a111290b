"""Exact scores that do not depend on where a row is stored.

BLAS sums in an order that depends on the shape of the whole product, so the last bits of a score would differ between
delta and segment and between replicas. `scores` sums every row alone, in one fixed order; BLAS and FAISS are used only
to choose candidates, with a margin far above their rounding error.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.float16] | NDArray[np.float32]

CHUNK_ROWS = 4_096
MARGIN = np.float32(2e-5)
"""Above the rounding error of a 4,096-term float32 dot product of unit vectors, however it is summed."""


def scores(rows: NDArray[np.float16] | NDArray[np.float32], query: NDArray[np.float32]) -> NDArray[np.float32]:
    """Dot products float32 (n,) of rows (n, dim) with one query (dim,); equal rows give equal bits anywhere."""
    result: NDArray[np.float32] = np.einsum("ij,j->i", rows.astype(np.float32, copy=False), query)
    return result


def paired(rows: Rows, queries: NDArray[np.float32]) -> NDArray[np.float32]:
    """Dot products float32 (n,) of rows (n, dim), each with its own query (n, dim): the same bits as `scores`."""
    result: NDArray[np.float32] = np.einsum("ij,ij->i", rows.astype(np.float32, copy=False), queries)
    return result


def chunks(vectors: NDArray[np.float16]) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """(first position, float32 rows) for successive chunks."""
    for start in range(0, len(vectors), CHUNK_ROWS):
        yield start, vectors[start : start + CHUNK_ROWS].astype(np.float32)


def exhaustive(
    vectors: NDArray[np.float16] | NDArray[np.float32], mask: NDArray[np.bool_], query: NDArray[np.float32], k: int
) -> NDArray[np.int64]:
    """Positions of every row under `mask` that can be among the best `k`: a superset, ties included."""
    kept: list[NDArray[np.int64]] = []
    values: list[NDArray[np.float32]] = []
    floor = np.float32(-np.inf)
    for start in range(0, len(vectors), CHUNK_ROWS):
        alive = mask[start : start + CHUNK_ROWS]
        positions = np.flatnonzero(alive)
        if not len(positions):
            continue
        found = scores(vectors[start : start + CHUNK_ROWS][alive], query)
        chosen = found >= floor
        kept.append(positions[chosen].astype(np.int64) + start)
        values.append(found[chosen])
        so_far = np.concatenate(values)
        if len(so_far) > k:
            floor = np.partition(so_far, -k)[-k]
    if not kept:
        return np.empty(0, dtype=np.int64)
    positions, final = np.concatenate(kept), np.concatenate(values)
    return positions[final >= floor]
