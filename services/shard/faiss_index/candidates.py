"""One trained index over positions 0..rows-1: the best candidates by quantised scores.

Searched by many threads, changed by none at once: how hard to look travels with each call and the index never changes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from services.shard.faiss_index import sealed_file
from services.shard.faiss_index.kinds import Kind, factory_string
from services.shard.faiss_index.library import Bitmap, Floats, Positions, contiguous, faiss
from services.shard.faiss_index.sealed_file import Trailer

POSITION_BYTES = 8
LINK_BYTES = 4


class CandidateIndex:
    """An index of any kind but the binary one, which overrides what differs."""

    def __init__(self, index: Any, kind: Kind) -> None:
        self._index = index
        self.kind = kind
        core = faiss.downcast_index(index.index) if kind is Kind.OPQ_IVF_PQ else index
        self._core = core
        """Without the rotation in front of it."""
        self._lists = int(core.nlist) if kind.inverted else 1

    @property
    def rows(self) -> int:
        return int(self._index.ntotal)

    @property
    def dim(self) -> int:
        return int(self._index.d)

    @property
    def lists(self) -> int:
        """Inverted lists; 1 for kinds without any."""
        return self._lists

    @property
    def effort_max(self) -> int:
        """The effort beyond which nothing more is found: every list, every row."""
        return max(1, self.rows) if self.kind is Kind.HNSW else self.lists

    @property
    def factory(self) -> str:
        """The factory string, as named in provenance."""
        return factory_string(self.kind, self.dim, self.lists)

    @property
    def bytes_per_row(self) -> float:
        """Bytes that each row takes in the index, position and links included, lists and tables not."""
        if self.kind is Kind.FLAT:
            return float(self._core.sa_code_size())
        if self.kind is Kind.HNSW:
            return float(self._core.storage.sa_code_size() + LINK_BYTES * self._core.hnsw.nb_neighbors(0))
        return float(self._core.code_size + POSITION_BYTES)

    @property
    def names_lists(self) -> bool:
        """Whether the lists nearest to a query can be found once, for all indexes of the same codec."""
        if self.kind not in (Kind.IVF_PQ_FASTSCAN, Kind.IVF_PQ, Kind.IVF_SQ8):
            return False
        return isinstance(faiss.downcast_index(self._core.quantizer), faiss.IndexFlat)

    def nearest_lists(self, query: Floats, count: int) -> Positions:
        """The `count` inverted lists that a search of the one query (1, dim) scans, best first."""
        _, found = self._core.quantizer.search(query, count)
        return np.asarray(found[0], dtype=np.int64)

    def base(self) -> Any:
        """The FAISS index, for `IndexRefine`; None when FAISS cannot re-rank it."""
        return self._index

    def codec(self) -> bytes:
        """The trained index without rows. Equal training samples give equal bytes."""
        empty = faiss.clone_index(self._index)
        empty.reset()
        return bytes(faiss.serialize_index(empty).tobytes())

    def add(self, vectors: Floats) -> None:
        """Append float32 rows (n, dim) at the next positions."""
        self._index.add(contiguous(vectors))

    def parameters(self, effort: int, selector: Any) -> Any:
        """FAISS search parameters; None where the kind has none to set. The caller keeps `selector` alive."""
        effort = max(1, min(effort, self.effort_max))
        if self.kind is Kind.FLAT:
            return faiss.SearchParameters(sel=selector)
        if self.kind is Kind.HNSW:
            return faiss.SearchParametersHNSW(efSearch=effort, sel=selector)
        inverted = faiss.SearchParametersIVF(nprobe=effort, sel=selector)
        if self.kind is Kind.OPQ_IVF_PQ:
            return faiss.SearchParametersPreTransform(index_params=inverted)
        return inverted

    def search(self, queries: Floats, count: int, effort: int, alive: Bitmap | None) -> Positions:
        """Positions (n, count) of the best candidates whose bit in `alive` is set (None: all), then -1.

        `effort`: inverted lists scanned (nprobe), for HNSW the candidate list's length (efSearch, at least `count`
        is taken); the flat kind scans everything.
        """
        selector = selector_of(alive)
        effort = max(effort, count) if self.kind is Kind.HNSW else effort
        _, found = self._index.search(contiguous(queries), count, params=self.parameters(effort, selector))
        return np.asarray(found, dtype=np.int64)

    def fit(self, vectors: Floats) -> tuple[float, float]:
        """(mean squared residual of float32 rows (n, dim) after coding, `sampled_imbalance` of their lists).

        The second is 1 for kinds without lists. FastScan's `sa_decode` would say the first but ends the process on an
        index that was read from bytes.
        """
        rows = contiguous(vectors)
        if self.kind is Kind.OPQ_IVF_PQ:
            rows = self._index.chain.at(0).apply(rows)  # a rotation: residuals keep their lengths
        if not self.kind.inverted:
            coder = self._core.storage if self.kind is Kind.HNSW else self._core
            coder = faiss.downcast_index(coder)
            return mean_squared(rows - coder.sa_decode(coder.sa_encode(rows))), 1.0
        _, assigned = self._core.quantizer.search(rows, 1)
        lengths = np.bincount(assigned[:, 0], minlength=self.lists)
        if self.kind is Kind.IVF_SQ8:
            return mean_squared(rows - self._core.sa_decode(self._core.sa_encode(rows))), sampled_imbalance(lengths)
        centroids = self._core.quantizer.reconstruct_batch(np.ascontiguousarray(assigned[:, 0]))
        residuals = contiguous(rows - centroids if self._core.by_residual else rows)
        errors = residuals - self._core.pq.decode(self._core.pq.compute_codes(residuals))
        return mean_squared(errors), sampled_imbalance(lengths)

    def list_lengths(self) -> Positions:
        """Rows of each inverted list (lists,); one list with everything for kinds without any."""
        if not self.kind.inverted:
            return np.array([self.rows], dtype=np.int64)
        lists = self._core.invlists
        return np.array([lists.list_size(number) for number in range(self.lists)], dtype=np.int64)

    def list_imbalance(self) -> float:
        """Mean squared list length / squared mean, of the rows that are in; 1 is even."""
        return imbalance(self.list_lengths())

    def write(self, path: Path) -> None:
        """Write the index to `path`; the caller makes it durable."""
        faiss.write_index(self._index, str(path))
        sealed_file.append(path, Trailer(self.kind.value, self.dim, self.rows, path.stat().st_size))


def selector_of(alive: Bitmap | None) -> Any:
    """FAISS's selector over a bitmap, which it does not copy; None for None."""
    return None if alive is None else faiss.IDSelectorBitmap(alive)


def mean_squared(errors: Floats) -> float:
    """Mean squared length of rows (n, dim)."""
    return float(np.square(errors).sum(axis=1).mean())


def imbalance(lengths: Positions) -> float:
    """Mean squared length / squared mean length; 0 for no rows at all."""
    sizes = lengths.astype(np.float64)
    return float(np.square(sizes).mean() / sizes.mean() ** 2) if sizes.any() else 0.0


def sampled_imbalance(lengths: Positions) -> float:
    """The same of a whole collection, estimated from how often two rows of a sample share a list; at least 1.

    Squared lengths of a sample that is small beside the number of lists tell of little but chance.
    """
    sizes = lengths.astype(np.float64)
    pairs = sizes.sum() * (sizes.sum() - 1)
    return max(1.0, float((sizes * (sizes - 1)).sum() * len(sizes) / pairs)) if pairs > 0 else 1.0
