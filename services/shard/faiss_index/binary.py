"""Binary inverted file: one bit per dimension, above the training sample's mean or not, compared by Hamming distance.

FAISS takes no selector here, so more is fetched and dead rows are dropped afterwards; and it cannot re-rank binary
candidates by itself, so `RefinedIndex` does it in a second call.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.shard.faiss_index import sealed_file
from services.shard.faiss_index.candidates import POSITION_BYTES, CandidateIndex, sampled_imbalance
from services.shard.faiss_index.kinds import Kind
from services.shard.faiss_index.library import SEED, Bitmap, Floats, Positions, faiss
from services.shard.faiss_index.sealed_file import Trailer

BYTE_BITS = 8


class BinaryIndex(CandidateIndex):
    """Bits padded with zeros to whole bytes."""

    def __init__(self, index: Any, thresholds: Floats) -> None:
        super().__init__(index, Kind.BINARY_IVF)
        self._thresholds = thresholds

    @property
    def dim(self) -> int:
        return len(self._thresholds)

    @property
    def bytes_per_row(self) -> float:
        return float(self._index.code_size + POSITION_BYTES)

    def base(self) -> Any:
        return None

    def codec(self) -> bytes:
        """FAISS's bytes of the index without rows, then the trailer with the thresholds."""
        rows = self.rows
        empty = faiss.deserialize_index_binary(faiss.serialize_index_binary(self._index)) if rows else self._index
        if rows:
            empty.reset()
        data = bytes(faiss.serialize_index_binary(empty).tobytes())
        return data + self._trailer(0, len(data)).to_bytes()

    def add(self, vectors: Floats) -> None:
        self._index.add(bits(vectors, self._thresholds))

    def search(self, queries: Floats, count: int, effort: int, alive: Bitmap | None) -> Positions:
        packed = bits(queries, self._thresholds)
        parameters = faiss.SearchParametersIVF(nprobe=max(1, min(effort, self.lists)))
        if alive is None:
            return self._search(packed, count, parameters)
        living = int(np.bitwise_count(alive).sum())
        share = max(1, living) / max(1, self.rows)
        fetched = min(self.rows, int(count / share * 1.25) + 16)
        while True:
            found = self._search(packed, fetched, parameters)
            kept = only_alive(found, count, alive)
            # A full answer, or one that was cut by nothing but the lists that were scanned.
            if fetched >= self.rows or bool((kept[:, -1] >= 0).all() or (found[:, -1] < 0).all()):
                return kept
            fetched = min(self.rows, 2 * fetched)

    def fit(self, vectors: Floats) -> tuple[float, float]:
        """(0: a sign has no residual, list imbalance of the rows)."""
        _, assigned = self._index.quantizer.search(bits(vectors, self._thresholds), 1)
        return 0.0, sampled_imbalance(np.bincount(assigned[:, 0], minlength=self.lists))

    def write(self, path: Path) -> None:
        faiss.write_index_binary(self._index, str(path))
        sealed_file.append(path, self._trailer(self.rows, path.stat().st_size))

    def _search(self, packed: NDArray[np.uint8], count: int, parameters: Any) -> Positions:
        _, found = self._index.search(packed, count, params=parameters)
        return np.asarray(found, dtype=np.int64)

    def _trailer(self, rows: int, length: int) -> Trailer:
        thresholds = self._thresholds.astype("<f4").tobytes().hex()
        return Trailer(self.kind.value, self.dim, rows, length, thresholds=thresholds)


def bits(vectors: Floats, thresholds: Floats) -> NDArray[np.uint8]:
    """Packed bits (n, ceil(dim / 8)) of float32 rows (n, dim): set where a value is above its threshold."""
    return np.packbits(np.asarray(vectors) > thresholds, axis=1)


def only_alive(found: Positions, count: int, alive: Bitmap) -> Positions:
    """The first `count` positions of each row (n, m) whose bit is set, in their order, then -1."""
    safe = found.clip(min=0)
    good = (found >= 0) & ((alive[safe >> 3] >> (safe & 7).astype(np.uint8)) & 1).astype(np.bool_)
    order = np.argsort(~good, axis=1, kind="stable")[:, :count]
    kept = np.where(np.take_along_axis(good, order, axis=1), np.take_along_axis(found, order, axis=1), -1)
    result = np.full((len(found), count), -1, dtype=np.int64)
    result[:, : kept.shape[1]] = kept
    return result


def padded(dim: int) -> int:
    """Bits of a row: `dim` rounded up to whole bytes."""
    return -(-dim // BYTE_BITS) * BYTE_BITS


def train(sample: Floats, lists: int) -> BinaryIndex:
    """Thresholds are the sample's means; lists are k-means centroids of its bits."""
    thresholds = np.ascontiguousarray(sample.mean(axis=0, dtype=np.float64), dtype=np.float32)
    index = faiss.index_binary_factory(padded(sample.shape[1]), f"BIVF{lists}")
    index.cp.seed, index.cp.min_points_per_centroid = SEED, 1  # FAISS writes a line of warning otherwise
    index.train(bits(sample, thresholds))
    return BinaryIndex(index, thresholds)


def from_bytes(data: bytes, trailer: Trailer) -> BinaryIndex:
    """From FAISS's bytes and the trailer that followed them."""
    index = faiss.deserialize_index_binary(np.frombuffer(data[: trailer.length], dtype=np.uint8))
    return BinaryIndex(index, thresholds_of(trailer))


def read(path: Path, trailer: Trailer) -> BinaryIndex:
    """From a file whose trailer was checked."""
    return BinaryIndex(faiss.read_index_binary(str(path)), thresholds_of(trailer))


def thresholds_of(trailer: Trailer) -> Floats:
    """float32 (dim,). Raises IndexFileError."""
    thresholds = np.frombuffer(bytes.fromhex(trailer.thresholds), dtype="<f4").astype(np.float32)
    if len(thresholds) != trailer.dim:
        raise sealed_file.IndexFileError(f"a binary index of {trailer.dim} dimensions has {len(thresholds)} thresholds")
    return thresholds
