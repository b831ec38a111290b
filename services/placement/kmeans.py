"""Spherical k-means: Lloyd's rounds from a greedy k-means++ start (Arthur and Vassilvitskii, 2007), seeded.

Distances are cosine: rows and centroids have unit length. The same rows and seed give the same centroids on one
machine; across machines BLAS may differ in the last bits, so centroids are trained once and travel by content.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

ROUNDS_MAX: Final = 25
STEADY: Final = 1e-4
"""Training ends when the mean cosine of rows to their centroid grows by less."""
ZERO: Final = 1e-6
"""A sum of rows shorter than this has no direction."""


def train(rows: NDArray[np.float32], count: int, seed: int, rounds_max: int = ROUNDS_MAX) -> NDArray[np.float32]:
    """Centroids float32 (at most `count`, dim) of unit length; fewer when rows (n, dim) have fewer directions.

    Raises ValueError when there are no rows or no centroids are wanted.
    """
    if rows.ndim != 2 or not len(rows) or count < 1:
        raise ValueError(f"k-means needs rows (n, dim) and a count of at least 1, not {rows.shape} and {count}")
    centroids = _spread(rows, count, np.random.default_rng(seed))
    before = -np.inf
    for _ in range(rounds_max):
        cosines = rows @ centroids.T
        cells = cosines.argmax(axis=1)
        own = cosines[np.arange(len(rows)), cells]
        centroids = _means(rows, cells, own, centroids)
        now = float(own.mean())
        if now - before < STEADY:
            break
        before = now
    return centroids


def _spread(rows: NDArray[np.float32], count: int, random: np.random.Generator) -> NDArray[np.float32]:
    """Rows drawn far from those drawn before, by squared distance: of a few such draws, the one that leaves least."""
    draws = 2 + int(np.log(count))
    chosen = [int(random.integers(len(rows)))]
    distances = _distances(rows, rows[chosen])[:, 0]
    while len(chosen) < count and (total := distances.sum()) > 0:
        places = np.searchsorted(np.cumsum(distances), random.random(draws) * total, side="right")
        places = np.minimum(places, np.flatnonzero(distances)[-1])
        left = np.minimum(distances[:, None], _distances(rows, rows[places]))
        best = int(left.sum(axis=0).argmin())
        chosen.append(int(places[best]))
        distances = left[:, best]
    made: NDArray[np.float32] = rows[chosen]
    return made


def _distances(rows: NDArray[np.float32], centres: NDArray[np.float32]) -> NDArray[np.float64]:
    """Squared Euclidean distances (rows, centres) of unit vectors, halved; zero within float32's rounding."""
    found = 1.0 - (rows @ centres.T).astype(np.float64)
    return np.where(found < ZERO, 0.0, found)


def _means(
    rows: NDArray[np.float32], cells: NDArray[np.intp], own: NDArray[np.float32], centroids: NDArray[np.float32]
) -> NDArray[np.float32]:
    """The normalised mean of every cell; an empty cell takes a row that lies far from its centroid."""
    order = np.argsort(cells, kind="stable")
    present, starts = np.unique(cells[order], return_index=True)
    sums = np.add.reduceat(rows[order].astype(np.float64), starts, axis=0)
    lengths = np.linalg.norm(sums, axis=1)
    directed = lengths > ZERO
    made = centroids.copy()
    made[present[directed]] = (sums[directed] / lengths[directed, None]).astype(np.float32)
    empty = np.setdiff1d(np.arange(len(centroids)), present)
    made[empty] = rows[np.argsort(own, kind="stable")[: len(empty)]]
    return made
