"""FAISS behind a small typed surface; the only module that imports it.

`IVF{nlist},PQ{M}x4fs` is the FastScan inverted file (Andre et al., "Quicker ADC"): four-bit codes scanned in SIMD
registers. Its scores only choose candidates; the caller re-ranks with raw vectors. Facts this module relies on, all
measured with faiss-cpu 1.15.1: concurrent searches are safe when nprobe travels in `SearchParametersIVF`; a bitmap
selector is indexed by FAISS id, so ids are dense positions; `add_sa_codes` on FastScan silently stores wrong codes
and is never called; FAISS detects truncated files but not flipped bits, so callers compare sha256 first.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import faiss as faiss_module
import numpy as np
from numpy.typing import NDArray

faiss: Any = faiss_module
"""The wheel's stubs describe the C++ signatures; the Python wrappers take arrays and keywords."""

Floats = NDArray[np.float32]
Positions = NDArray[np.int64]
Bitmap = NDArray[np.uint8]

TRAIN_POINTS_PER_CENTROID_MIN = 39
"""k-means warns below this."""
TRAIN_POINTS_PER_CENTROID_MAX = 256
"""k-means ignores what is above this."""
SEED = 20_260_101


def use_one_thread() -> None:
    """Make FAISS calls of the calling thread single-threaded; OpenMP keeps this per thread."""
    faiss.omp_set_num_threads(1)


def subquantizers(dim: int) -> int:
    """M: the divisor of `dim` nearest to dim / 4, the smaller of two equally near."""
    return min((m for m in range(1, dim + 1) if dim % m == 0), key=lambda m: (abs(4 * m - dim), m))


def inverted_lists(rows: int) -> int:
    """nlist for `rows` training rows: a power of two near 4 sqrt(rows) with enough points for each centroid."""
    limit = min(4.0 * rows**0.5, rows / TRAIN_POINTS_PER_CENTROID_MIN)
    return 1 << max(0, int(limit).bit_length() - 1)


class InvertedFile:
    """A trained FastScan inverted file over positions 0..rows-1. Searched by many threads, changed by none at once."""

    def __init__(self, index: Any) -> None:
        self._index = index

    @property
    def rows(self) -> int:
        return int(self._index.ntotal)

    @property
    def lists(self) -> int:
        return int(self._index.nlist)

    @property
    def dim(self) -> int:
        return int(self._index.d)

    @property
    def factory(self) -> str:
        """The factory string, as named in provenance."""
        return f"IVF{self.lists},PQ{int(self._index.pq.M)}x4fs"

    def list_imbalance(self) -> float:
        """Mean squared list length / squared mean list length: 1 is even; 0 without rows."""
        lists = self._index.invlists
        lengths = np.array([lists.list_size(number) for number in range(self.lists)], dtype=np.float64)
        return float(np.square(lengths).mean() / lengths.mean() ** 2) if lengths.any() else 0.0

    def codec(self) -> bytes:
        """The trained index without rows. Equal training samples give equal bytes."""
        empty = faiss.clone_index(self._index)
        empty.reset()
        return bytes(faiss.serialize_index(empty).tobytes())

    def add(self, vectors: Floats) -> None:
        """Append float32 rows (n, dim) at the next positions."""
        self._index.add(np.ascontiguousarray(vectors, dtype=np.float32))

    def search(self, queries: Floats, count: int, nprobe: int, alive: Bitmap | None) -> Positions:
        """Positions (n, count) of the best candidates whose bit in `alive` is set (None: all), then -1."""
        selector = None if alive is None else faiss.IDSelectorBitmap(alive)
        parameters = faiss.SearchParametersIVF(nprobe=min(nprobe, self.lists), sel=selector)
        _, found = self._index.search(queries, count, params=parameters)
        return np.asarray(found, dtype=np.int64)

    def fit(self, vectors: Floats) -> tuple[float, float]:
        """(mean squared residual of float32 rows (n, dim) after coding, mean squared list length / squared mean).

        `sa_decode` would say the same but ends the process on a FastScan index that was read from bytes.
        """
        rows = np.ascontiguousarray(vectors, dtype=np.float32)
        _, lists = self._index.quantizer.search(rows, 1)
        centroids = self._index.quantizer.reconstruct_batch(np.ascontiguousarray(lists[:, 0]))
        residuals = np.ascontiguousarray(rows - centroids if self._index.by_residual else rows)
        errors = residuals - self._index.pq.decode(self._index.pq.compute_codes(residuals))
        lengths = np.bincount(lists[:, 0], minlength=self.lists).astype(np.float64)
        return float(np.square(errors).sum(axis=1).mean()), float(np.square(lengths).mean() / lengths.mean() ** 2)

    def write(self, path: Path) -> None:
        """Write the index to `path`; the caller makes it durable."""
        faiss.write_index(self._index, str(path))


def train(sample: Floats, threads: int) -> InvertedFile:
    """Train on float32 rows (n, dim). Deterministic: equal samples in equal order give an equal codec."""
    rows, dim = sample.shape
    lists = inverted_lists(rows)
    index = faiss.index_factory(dim, f"IVF{lists},PQ{subquantizers(dim)}x4fs", faiss.METRIC_INNER_PRODUCT)
    index.cp.seed = SEED
    index.pq.cp.seed = SEED
    faiss.omp_set_num_threads(threads)
    try:
        index.train(np.ascontiguousarray(sample, dtype=np.float32))
    finally:
        faiss.omp_set_num_threads(1)
    return InvertedFile(index)


def from_codec(codec: bytes) -> InvertedFile:
    """An empty index with the codec of an earlier `codec()`. The caller has checked where the bytes come from."""
    return InvertedFile(faiss.deserialize_index(np.frombuffer(codec, dtype=np.uint8)))


def codec_id(codec: bytes) -> str:
    """First 8 hex digits of the codec's sha256: the codec generation in an index epoch."""
    return hashlib.sha256(codec).hexdigest()[:8]


def read(path: Path) -> InvertedFile:
    """Read an index whose sha256 the caller has verified. Raises OSError when FAISS cannot read it."""
    try:
        return InvertedFile(faiss.read_index(str(path)))
    except RuntimeError as error:
        raise OSError(f"{path}: {error}") from error


def nearest(query: Floats, vectors: Floats, count: int, alive: Bitmap | None) -> tuple[Floats, Positions]:
    """Exact inner-product search of one float32 query (dim,) over rows (n, dim), in the calling thread.

    Returns (scores, positions), best first, of at most `count` rows whose bit in `alive` is set (None: all).
    """
    rows, dim = vectors.shape
    count = min(count, rows)
    scores = np.empty((1, count), dtype=np.float32)
    found = np.empty((1, count), dtype=np.int64)
    line = np.ascontiguousarray(query, dtype=np.float32)
    selector = None if alive is None else faiss.IDSelectorBitmap(alive)
    faiss.knn_inner_product(
        *(faiss.swig_ptr(line), faiss.swig_ptr(vectors), dim, 1, rows, count),
        *(faiss.swig_ptr(scores), faiss.swig_ptr(found), selector),
    )
    kept = found[0] >= 0
    return scores[0][kept], found[0][kept]
