"""How well the codec still fits the rows that arrive: their quantisation error beside that at training.

Rows that follow another distribution than the training sample lie far from their centroids; more of them have to be
re-ranked for the same recall. The owner of the codec decides on retraining from a sample of all rows; this reading is
of this replica's newest rows, for people and dashboards.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.runtime.clock import Clock
from services.shard import faiss_index
from services.shard.codecs import CodecRecord, CodecStore
from services.shard.view import View

INTERVAL_S = 60.0
ROWS_MIN = 256
"""Fewer rows say little about their distribution."""
ROWS_MAX = 1_024

Fit = Callable[[bytes, NDArray[np.float32]], float]


@dataclass(frozen=True, slots=True)
class DriftReading:
    """Zeros: not measured, or not known."""

    error: float = 0.0
    """Mean squared residual of recent rows after coding."""
    error_basis: float = 0.0
    """The same when the codec was trained, on rows held out of training."""
    rows: int = 0

    @property
    def ratio(self) -> float:
        return self.error / self.error_basis if self.error_basis else 0.0


def coding_error(codec: bytes, rows: NDArray[np.float32]) -> float:
    """Mean squared residual of float32 rows (n, dim) after coding."""
    return faiss_index.from_codec(codec).fit(rows)[0]


class Drift:
    """One replica's. `step` is called by one background thread, `reading` from anywhere."""

    def __init__(self, store: CodecStore, clock: Clock, fit: Fit = coding_error) -> None:
        self._store, self._clock, self._fit = store, clock, fit
        self._lock = threading.Lock()
        self._reading = DriftReading()
        self._measured_s: float | None = None

    def step(self, view: View) -> bool:
        """Measure if it is time, the delta holds enough rows, and there is a codec; whether it was measured."""
        now_s = self._clock.monotonic_s()
        if self._measured_s is not None and now_s - self._measured_s < INTERVAL_S:
            return False
        if view.delta.live < ROWS_MIN or (codec := self._store.current()) is None:
            return False
        positions = view.delta.live_positions()[-ROWS_MAX:]
        error = self._fit(codec.data, np.asarray(view.delta.vectors[positions], dtype=np.float32))
        with self._lock:
            self._reading = DriftReading(error, codec.record.error_basis, len(positions))
            self._measured_s = now_s
        return True

    def codec(self) -> CodecRecord | None:
        """The collection's current codec."""
        return self._store.record()

    def reading(self) -> DriftReading:
        """The last measurement."""
        with self._lock:
            return self._reading
