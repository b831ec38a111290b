"""Rows, batches and pulled state for tests of the shard."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ostraka.v1 import passage_pb2
from services.quorum.clock import Version, pack
from services.quorum.gtid import Gtid, GtidSet
from services.quorum.rows import HeadRow, PassageRow, WriteBatch
from services.runtime.config import ShardConfig

DIM = 16
NOW_MS = 1_800_000_000_000
SOURCE = (1 << 63) + 5
"""Above the signed range, as half of all boot ids are."""


class FixedClock:
    """A wall clock that tests move; the monotonic one follows it."""

    def __init__(self, now_ms: int = NOW_MS) -> None:
        self.now_ms = now_ms

    def wall_ms(self) -> int:
        return self.now_ms

    def monotonic_s(self) -> float:
        return self.now_ms / 1_000


def config(**changes: int) -> ShardConfig:
    """Small limits, a long queue, no disk reserve."""
    base = ShardConfig(disk_reserve_bytes=0, delta_rows_flush=200, train_rows_min=700, write_queue_max=4_096)
    return replace(base, background_cpu=1.0, **changes)


def vector(seed: int, dim: int = DIM) -> bytes:
    """A unit vector as float16 bytes."""
    row = np.random.default_rng(seed).standard_normal(dim)
    return bytes((row / np.linalg.norm(row)).astype("<f2").tobytes())


def version(step: int, source: int = SOURCE) -> Version:
    return Version(pack(NOW_MS, step), source)


def passage(document_id: str, ordinal: int, at: Version, seed: int = 0, dim: int = DIM) -> PassageRow:
    text = f"{document_id}#{ordinal} seed {seed}"
    payload = passage_pb2.Passage(document_id=document_id, ordinal=ordinal, text=text).SerializeToString()
    return PassageRow(document_id, ordinal, at, vector(seed or hash_of(text), dim), payload)


def hash_of(text: str) -> int:
    return zlib.crc32(text.encode())


def batch(
    step: int, documents: Sequence[tuple[str, int]], *, depends: GtidSet = GtidSet.EMPTY, seed: int = 0, dim: int = DIM
) -> WriteBatch:
    """One batch, gtid and version number `step`, of whole documents (id, passages); 0 passages is a tombstone."""
    at = version(step)
    passages = tuple(
        passage(document_id, ordinal, at, seed and seed + ordinal, dim)
        for document_id, count in documents
        for ordinal in range(count)
    )
    heads = tuple(HeadRow(document_id, count, at) for document_id, count in documents)
    return WriteBatch(Gtid(SOURCE, step), at, passages, heads, depends)
