"""Synthetic clustered rows, written through an engine's real write path."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ostraka.v1 import passage_pb2
from services.quorum.clock import Version, pack
from services.quorum.gtid import Gtid
from services.quorum.rows import HeadRow, PassageRow, WriteBatch
from services.runtime.clock import SYSTEM_CLOCK
from services.shard.engine import Engine

CLUSTERS = 1_000
SPREAD = 0.6


class Rows:
    """Unit rows around fixed centres; row n is the same in every run with the seed."""

    def __init__(self, dim: int, seed: int) -> None:
        self.dim, self._seed = dim, seed
        self.batches = 0
        """Written so far. Sequence numbers have no gaps, as a coordinator's have none."""
        self._centres = _unit(np.random.default_rng(seed).standard_normal((CLUSTERS, dim)))

    def vectors(self, first: int, count: int) -> NDArray[np.float16]:
        """Rows first .. first + count - 1, float16 (count, dim)."""
        return self._drawn(np.random.default_rng((self._seed, first)), count).astype(np.float16)

    def queries(self, count: int) -> NDArray[np.float32]:
        """Unit queries of the same distribution, float32 (count, dim)."""
        return self._drawn(np.random.default_rng((self._seed, 1 << 40)), count).astype(np.float32)

    def _drawn(self, rng: np.random.Generator, count: int) -> NDArray[np.float64]:
        noise = _unit(rng.standard_normal((count, self.dim))) * SPREAD
        return _unit(self._centres[rng.integers(0, CLUSTERS, count)] + noise)


def write(engine: Engine, rows: Rows, first: int, count: int) -> NDArray[np.float16]:
    """Write rows `first` .. as documents of one passage and wait until they are acknowledged; their vectors."""
    vectors = rows.vectors(first, count)
    version = Version(pack(SYSTEM_CLOCK.wall_ms(), first % 65_536), 1)
    rows.batches += 1
    passages, heads = [], []
    for number, vector in enumerate(vectors, start=first):
        payload = passage_pb2.Passage(text=f"row {number % 1000}", source="bench").SerializeToString()
        passages.append(PassageRow(f"d{number}", 0, version, vector.astype("<f2").tobytes(), payload))
        heads.append(HeadRow(f"d{number}", 1, version))
    written = engine.write(WriteBatch(Gtid(1, rows.batches), version, tuple(passages), tuple(heads)), 1)
    assert written is not None, "one batch at a time fits into the queue"
    reply = written.result()
    assert reply.status.name == "OK", reply
    return vectors


def _unit(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))
