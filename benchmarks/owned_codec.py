"""The codec of one replica alone, trained by the rules of a collection's codec owner but in the calling thread."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from services.runtime.config import ShardConfig
from services.shard import codec_policy, codec_training, faiss_index, sampling
from services.shard.codecs import CodecStore
from services.shard.engine import Engine
from services.shard.faiss_index import DEFAULT_KIND
from services.shard.node_codecs import index_family


class OwnedCodec:
    """`store` is what the replica encodes with."""

    def __init__(self, directory: Path, dim: int, config: ShardConfig) -> None:
        self.store = CodecStore(directory, "bench", index_family(DEFAULT_KIND, dim), dim)
        self._rows_min = config.train_rows_min

    def reason(self, rows: int) -> str:
        """Why a codec should be trained for so many live rows; "" when it should not."""
        record = self.store.record()
        basis = None if record is None else codec_training.basis_of(record)
        return codec_policy.reason_to_train(basis, rows, self._rows_min)

    def train_if_due(self, engine: Engine) -> None:
        """On as many of the replica's rows as its owner would draw."""
        rows = engine.view.rows_live
        if not self.reason(rows):
            return
        lists = faiss_index.inverted_lists(rows, engine.dim)
        drawn = sampling.drawn(engine.view, codec_policy.training_rows(rows, lists, engine.dim))
        trained = codec_training.train(np.concatenate(list(sampling.pieces(engine, drawn))), DEFAULT_KIND, lists)
        self.store.offer(codec_training.record_of(trained, self.store.record(), rows), trained.data)
