"""Cells onto shards, from nothing: by load alone, or so that near cells share a shard.

`lpt` is longest processing time first (Graham, 1969): at most 4/3 of the best possible maximum. `grouped` gives up some
evenness: a query probes cells that lie together, and asks fewer shards when these belong to one.
"""

from __future__ import annotations

import heapq
from typing import Final

import numpy as np
from numpy.typing import NDArray

from services.placement import kmeans

SLACK: Final = 0.1
"""How far above the mean load a shard may be filled by `grouped`."""
ROUNDS: Final = 8


def lpt(loads: NDArray[np.float64], shards: int) -> tuple[int, ...]:
    """cell -> shard: the heaviest cell first, each onto the least loaded shard. Raises ValueError."""
    _check(loads, shards)
    heap = [(0.0, 0, shard) for shard in range(shards)]
    owners = [0] * len(loads)
    for cell in np.argsort(-loads, kind="stable").tolist():
        load, cells, shard = heap[0]
        heapq.heapreplace(heap, (load + float(loads[cell]), cells + 1, shard))
        owners[cell] = shard
    return tuple(owners)


def grouped(
    centroids: NDArray[np.float32], loads: NDArray[np.float64], shards: int, seed: int, slack: float = SLACK
) -> tuple[int, ...]:
    """cell -> shard: the nearest of `shards` group centres that has room, and centres that follow their cells.

    `centroids` (cells, dim) of unit length. A shard is filled to (1 + slack) of the mean load, except by cells that fit
    nowhere: those go to the least loaded. Raises ValueError.
    """
    _check(loads, shards)
    if len(centroids) != len(loads) or slack < 0:
        raise ValueError(f"{len(centroids)} centroids, {len(loads)} loads, slack {slack}")
    centres = kmeans.train(centroids, shards, seed)
    owners = np.zeros(len(loads), dtype=np.int64)
    for _ in range(ROUNDS):
        owners = _fill(centroids @ centres.T, loads, shards, slack)
        moved = _centres(centroids, loads, owners, centres)
        if np.array_equal(moved, centres):
            break
        centres = moved
    return tuple(owners.tolist())


def _fill(cosines: NDArray[np.float32], loads: NDArray[np.float64], shards: int, slack: float) -> NDArray[np.int64]:
    """Cells that lose most by their second choice choose first."""
    room = np.full(shards, (1 + slack) * loads.sum() / shards)
    padded = np.full((len(loads), shards), -1.0)  # there may be fewer directions than shards
    padded[:, : cosines.shape[1]] = cosines
    best = np.sort(padded, axis=1)
    regret = best[:, -1] - best[:, -2] if shards > 1 else best[:, -1]
    owners = np.zeros(len(loads), dtype=np.int64)
    for cell in np.argsort(-regret, kind="stable"):
        fitting = np.flatnonzero(room >= loads[cell])
        shard = fitting[padded[cell, fitting].argmax()] if len(fitting) else room.argmax()
        owners[cell] = shard
        room[shard] -= loads[cell]
    return owners


def _centres(
    centroids: NDArray[np.float32], loads: NDArray[np.float64], owners: NDArray[np.int64], centres: NDArray[np.float32]
) -> NDArray[np.float32]:
    made = centres.copy()
    for shard in range(len(centres)):
        owned = owners == shard
        total = (centroids[owned].astype(np.float64) * (loads[owned, None] + 1e-12)).sum(axis=0)
        length = float(np.linalg.norm(total))
        if length > 0:
            made[shard] = (total / length).astype(np.float32)
    return made


def _check(loads: NDArray[np.float64], shards: int) -> None:
    if shards < 1 or loads.ndim != 1 or not len(loads) or not np.isfinite(loads).all() or loads.min() < 0:
        raise ValueError(f"{shards} shards and loads {loads.shape}; there must be some, finite and not negative")
