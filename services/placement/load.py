"""What each cell (or bucket) costs, smoothed over time: bytes it holds and bytes that searches scan in it.

Both are kept as exponentially weighted moving averages with a half-life. A cell's *load* is a share of the whole, 1 in
sum: a weighted mean of its share of bytes held and its share of bytes scanned per second, so that max/mean of shards
needs no unit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

HALF_LIFE_S: Final = 120.0


@dataclass(frozen=True, slots=True)
class Weights:
    """How much what is held and what is scanned count. Raises ValueError.

    With halves a shard may do 1.5 times the mean's work while its load looks even (docs/placement.md).
    """

    held: float = 0.2
    scanned: float = 0.8

    def __post_init__(self) -> None:
        if self.held < 0 or self.scanned < 0 or self.held + self.scanned <= 0:
            raise ValueError(f"weights are not negative and not both zero: {self.held}, {self.scanned}")


@dataclass(frozen=True, slots=True, eq=False)
class CellLoads:
    """Averages as of `at_s`; a value, replaced at each observation."""

    rows: NDArray[np.int64]
    """(cells,) live now: what a move would copy."""
    bytes_held: NDArray[np.float64]
    """(cells,) average."""
    probes_per_s: NDArray[np.float64]
    """(cells,) average of searches that scan the cell."""
    row_bytes: float
    at_s: float
    counters: NDArray[np.int64]
    """(cells,) probes since the counting began, as last told."""

    @classmethod
    def first(cls, now_s: float, rows: Sequence[int], row_bytes: float, probes: Sequence[int]) -> CellLoads:
        """Of a first look: no rate is known yet."""
        held = _counts(rows)
        counters = _counts(probes)
        if held.shape != counters.shape or not row_bytes > 0:
            raise ValueError(f"{len(held)} cells with rows of {row_bytes} bytes, {len(counters)} with probes")
        return cls(held, held.astype(np.float64) * row_bytes, np.zeros(len(held)), row_bytes, now_s, counters)

    @classmethod
    def measured(cls, rows: Sequence[int], row_bytes: float, probes_per_s: Sequence[float]) -> CellLoads:
        """Of rates that are known already. Raises ValueError."""
        made = cls.first(0.0, rows, row_bytes, [0] * len(rows))
        rates = np.asarray(probes_per_s, dtype=np.float64)
        if rates.shape != made.rows.shape or not np.isfinite(rates).all() or rates.min() < 0:
            raise ValueError(f"{len(rows)} cells, rates {rates.shape}; they are finite and not negative")
        return replace(made, probes_per_s=rates)

    def observed(self, now_s: float, rows: Sequence[int], probes: Sequence[int]) -> CellLoads:
        """After a further look. A counter that fell began anew, as after a restart. Raises ValueError."""
        held, counters = _counts(rows), _counts(probes)
        if held.shape != self.rows.shape or counters.shape != self.rows.shape:
            raise ValueError(f"{len(held)} and {len(counters)} cells, not {len(self.rows)}")
        passed_s = now_s - self.at_s
        if passed_s <= 0:
            raise ValueError(f"a look at {now_s} s after one at {self.at_s} s")
        new = 1.0 - 0.5 ** (passed_s / HALF_LIFE_S)
        counted = np.where(counters >= self.counters, counters - self.counters, counters)
        return CellLoads(
            held,
            self.bytes_held + new * (held * self.row_bytes - self.bytes_held),
            self.probes_per_s + new * (counted / passed_s - self.probes_per_s),
            self.row_bytes,
            now_s,
            counters,
        )

    @property
    def scanned_per_s(self) -> NDArray[np.float64]:
        """Bytes (cells,) that searches scan in a second."""
        return self.probes_per_s * self.bytes_held

    def shares(self, weights: Weights) -> NDArray[np.float64]:
        """The load (cells,), 1 in sum; zeros when there is none. What nobody measures, as without searches, has no
        weight."""
        parts = ((weights.held, self.bytes_held), (weights.scanned, self.scanned_per_s))
        known = [(weight, values / values.sum()) for weight, values in parts if weight > 0 and values.sum() > 0]
        if not known:
            return np.zeros(len(self.rows))
        total = sum(weight for weight, _ in known)
        made = np.zeros(len(self.rows))
        for weight, values in known:
            made += weight / total * values
        return made


def shard_loads(loads: NDArray[np.float64], owners: Sequence[int], shards: int) -> NDArray[np.float64]:
    """The sum (shards,) over the cells that each shard owns."""
    return np.bincount(np.asarray(owners, dtype=np.int64), weights=loads, minlength=shards).astype(np.float64)


def imbalance(of_shards: NDArray[np.float64]) -> float:
    """max/mean; 1 is even, and so is no load at all."""
    mean = float(of_shards.mean())
    return float(of_shards.max()) / mean if mean > 0 else 1.0


def _counts(values: Sequence[int]) -> NDArray[np.int64]:
    made = np.asarray(values, dtype=np.int64)
    if made.ndim != 1 or not len(made) or made.min() < 0:
        raise ValueError(f"counts of cells are one list, none negative: shape {made.shape}")
    return made
