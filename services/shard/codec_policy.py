"""When a codec is trained, by whom, and on how much. Pure.

The owner of a collection's codec is the first node, in the mesh file's order, that hosts the collection and has been
heard lately. Two nodes may both believe to be it for a while (a partition, a pause): both train, and the greatest
(generation, sha256) wins everywhere, so nothing worse happens than work done twice. That is why no lease is needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

GROWTH_MAX = 2.0
"""Rows now over rows at training, above which the lists have become too long."""
DRIFT_MAX = 1.2
"""Quantisation error or list imbalance now over the same at training, above which the codec no longer fits.

Where half of the rows came after training, sorted along one direction or as clusters not seen before, list imbalance
is 1.3 to 2.0 times as great, and a recall of 0.99 takes twice to four times the lists. Where they came in random order
it is 0.8 to 0.9 times as great, for rows of the training sample are among those it is measured on.
"""
POINTS_PER_LIST = 64
"""Training rows for each centroid; more than this gains little."""
TRAINED_ROWS_LEAST = 65_536
"""Training rows for the product quantiser's tables, when there are as many."""
SAMPLE_BYTES_MAX = 256 * 1024 * 1024
"""Of a sample as float32, which is what training holds in memory."""


@dataclass(frozen=True, slots=True)
class Fit:
    """How well a codec fits rows it was not trained on."""

    error: float
    """Mean squared residual after encoding and decoding."""
    imbalance: float
    """Mean squared list length / squared mean list length of the collection, estimated; 1 is even."""


@dataclass(frozen=True, slots=True)
class Basis:
    """What the current codec was trained for."""

    generation: int
    rows: int
    """Live rows of the collection then."""
    fit: Fit
    """Zeros: unknown."""


def owner(order: Sequence[str], heard_s: Mapping[str, float], me: str, now_s: float, silent_s: float) -> str:
    """Who trains: the first of `order` that was heard within `silent_s`, or `me`, whichever comes first.

    `heard_s`: when each node was last heard, or when listening to it began. `me` must be in `order`.
    """
    assert me in order, "only a node that hosts the collection asks"
    for node in order:
        if node == me or now_s - heard_s.get(node, -silent_s) <= silent_s:
            return node
    raise AssertionError("unreachable: `me` is in `order`")


def reason_to_train(basis: Basis | None, rows: int, rows_min: int, fit: Fit | None = None) -> str:
    """Why a codec should be trained for `rows` live rows over all shards; "" when it should not."""
    if rows < rows_min:
        return ""
    if basis is None:
        return "no codec yet"
    if rows > GROWTH_MAX * basis.rows:
        return f"growth from {basis.rows} to {rows} rows"
    if fit is None:
        return ""
    if 0 < DRIFT_MAX * basis.fit.error < fit.error:
        return f"quantisation error rose from {basis.fit.error:.4g} to {fit.error:.4g}"
    if 0 < DRIFT_MAX * basis.fit.imbalance < fit.imbalance:
        return f"list imbalance rose from {basis.fit.imbalance:.3g} to {fit.imbalance:.3g}"
    return ""


def training_rows(rows: int, lists: int, dim: int) -> int:
    """How many of `rows` live rows to train on."""
    return min(rows, max(POINTS_PER_LIST * lists, TRAINED_ROWS_LEAST), SAMPLE_BYTES_MAX // (4 * dim))


def shares(live: Mapping[int, int], wanted: int) -> dict[int, int]:
    """Rows to draw from each shard: in proportion to its live rows, `wanted` in all or every row there is."""
    total = sum(live.values())
    wanted = min(wanted, total)
    if not wanted:
        return dict.fromkeys(live, 0)
    found = {shard: rows * wanted // total for shard, rows in live.items()}
    left = wanted - sum(found.values())
    by_remainder = sorted(live, key=lambda shard: (-(live[shard] * wanted % total), shard))
    for shard in by_remainder[:left]:
        found[shard] += 1
    return found
