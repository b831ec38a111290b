"""Live rows drawn evenly from one replica, for training and measuring codecs.

The rows come from SQLite, where each carries a checksum, so a damaged vector never shapes a codec.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from services.shard.engine import Engine
from services.shard.view import View

ROWS_PER_PIECE = 1_024
SEED = 20_260_102


def drawn(view: View, rows: int, seed: int = SEED) -> NDArray[np.int64]:
    """At most `rows` live rids, ascending: one at random from each of `rows` equal spans, so old and new rows are
    drawn alike and no regular pattern of documents is met in step."""
    live = view.live_rids()
    if len(live) <= rows:
        return live
    bounds = np.linspace(0, len(live), rows + 1).astype(np.int64)
    return np.asarray(live[np.random.default_rng(seed).integers(bounds[:-1], bounds[1:])], dtype=np.int64)


def pieces(engine: Engine, rids: NDArray[np.int64], rows_max: int = ROWS_PER_PIECE) -> Iterator[NDArray[np.float16]]:
    """Vectors float16 (n <= rows_max, dim) of `rids`, without those purged meanwhile and without damaged ones, which
    are reported. Raises StoreError."""
    for start in range(0, len(rids), rows_max):
        with engine.readers.lend() as reader:
            found, bad = reader.vectors([int(rid) for rid in rids[start : start + rows_max]])
        if bad:
            engine.note_damage(bad)
        kept = [vector for vector in found if vector is not None]
        yield np.frombuffer(b"".join(kept), dtype="<f2").reshape(len(kept), engine.dim)
