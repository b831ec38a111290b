"""Which shards a query asks when cells decide: near cells first, until they are too far to matter.

A cell is probed while its distance is at most (1 + e) times the nearest one's. What e costs in recall is measured on
sample queries, never assumed: `choose_e` takes the least e whose recall, less two standard errors, reaches the target.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

SHARDS_MIN: Final = 2
"""Asked at least, when there are as many: a query at the edge of its cell must not depend on the edge."""
SAMPLE_MIN: Final = 100
"""Fewer queries cannot tell 0.99 from 1."""
CANDIDATES: Final = 512
SURE_ERRORS: Final = 2.0
NOTHING: Final = 1e-9
"""Distances below are rounding: a query at a centroid is this far from it."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The e that was chosen, and what it gave on the queries that it was chosen on."""

    e: float
    recall: float
    recall_error: float
    """Standard error of the mean over queries."""
    shards_mean: float
    """Asked per query."""


def cells_within(distances: NDArray[np.float64], e: float) -> NDArray[np.int64]:
    """The cells to probe, nearest first; `distances` (cells,)."""
    order = np.argsort(distances, kind="stable").astype(np.int64)
    return order[_excess(distances[order], distances[order[0]]) <= e]


def shards_to_ask(
    distances: NDArray[np.float64], owners: Sequence[int], e: float, shards_min: int = SHARDS_MIN
) -> tuple[int, ...]:
    """The shards that own the probed cells, nearest first, at least `shards_min` and at most all that own a cell.

    `distances` (cells,) of the query; `owners`: cell -> shard. Raises ValueError for a negative e or other lengths.
    """
    if len(owners) != len(distances) or not e >= 0 or shards_min < 1:
        raise ValueError(f"{len(distances)} distances, {len(owners)} owners, e={e}, at least {shards_min} shards")
    table = np.asarray(owners)
    order = np.argsort(distances, kind="stable")
    in_order = list(dict.fromkeys(table[order].tolist()))
    wanted = len(dict.fromkeys(table[cells_within(distances, e)].tolist()))
    return tuple(in_order[: max(wanted, shards_min)])


def reaches(distances: NDArray[np.float64], owners: Sequence[int], shards: int) -> NDArray[np.float64]:
    """The least e (queries, shards) at which a query asks a shard, `SHARDS_MIN` aside; inf without a cell.

    `distances` (queries, cells).
    """
    table = np.asarray(owners)
    nearest = np.full((len(distances), shards), np.inf)
    for shard in range(shards):
        owned = table == shard
        if owned.any():
            nearest[:, shard] = distances[:, owned].min(axis=1)
    return _excess(nearest, distances.min(axis=1, keepdims=True))


def _excess(distances: NDArray[np.float64], best: NDArray[np.float64] | np.float64) -> NDArray[np.float64]:
    """By which share others exceed the best distance: one formula, so that a chosen e means the same later."""
    return np.maximum(distances, NOTHING) / np.maximum(best, NOTHING) - 1.0


def recalls(
    reach: NDArray[np.float64], found: NDArray[np.int64], k: int, e: float, shards_min: int = SHARDS_MIN
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """(recall@k (queries,), shards asked (queries,)) at one e, when every shard asked answers exactly.

    `found` (queries, shards): how many of the true k best a shard holds; ties at the k-th place all count.
    """
    order = np.argsort(reach, axis=1, kind="stable")
    in_order = np.take_along_axis(reach, order, axis=1)
    asked = np.maximum((in_order <= e).sum(axis=1), shards_min)
    asked = np.minimum(asked, np.maximum(np.isfinite(in_order).sum(axis=1), 1)).astype(np.int64)
    held = np.cumsum(np.take_along_axis(found, order, axis=1), axis=1)
    total = np.minimum(held[:, -1], k)
    got = np.minimum(np.take_along_axis(held, asked[:, None] - 1, axis=1)[:, 0], k)
    return np.where(total > 0, got / np.maximum(total, 1), 1.0), asked


def choose_e(
    reach: NDArray[np.float64], found: NDArray[np.int64], k: int, target: float, shards_min: int = SHARDS_MIN
) -> Choice:
    """The least e whose recall@k, less two standard errors, reaches `target` of what asking all shards gives.

    There always is one: at the greatest reach every shard is asked. `reach`, `found`: as `recalls` takes them.
    Raises ValueError for fewer than SAMPLE_MIN queries or a target that is not in (0, 1].
    """
    if len(reach) < SAMPLE_MIN or not 0 < target <= 1:
        raise ValueError(f"{len(reach)} queries of at least {SAMPLE_MIN}, target {target} of at most 1")
    for e in candidates(reach):
        choice = measured(reach, found, k, e, shards_min)
        if choice.recall - SURE_ERRORS * choice.recall_error >= target:
            return choice
    return measured(reach, found, k, math.inf, shards_min)


def candidates(reach: NDArray[np.float64]) -> list[float]:
    """Values of e to try, ascending: 0 and evenly spaced quantiles of what was seen, the greatest included."""
    finite = np.sort(reach[np.isfinite(reach)])
    places = np.linspace(0, len(finite) - 1, CANDIDATES).round().astype(int)
    return list(dict.fromkeys([0.0, *finite[places].tolist()]))


def measured(
    reach: NDArray[np.float64], found: NDArray[np.int64], k: int, e: float, shards_min: int = SHARDS_MIN
) -> Choice:
    """What one e gives on these queries."""
    recall, asked = recalls(reach, found, k, e, shards_min)
    error = float(recall.std(ddof=1) / math.sqrt(len(recall))) if len(recall) > 1 else math.inf
    return Choice(e, float(recall.mean()), error, float(asked.mean()))
