"""Voronoi cells: which of the centroids is nearest to a document or a query.

The document is the unit of placement: its cell is that of the mean of its passages' vectors. Every router must come to
the same cell, so nearly equal cosines are computed once more in one fixed order instead of trusting BLAS.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

CELLS_MAX: Final = 256
DIM_MAX: Final = 4_096
_HEAD: Final = struct.Struct("<8sII")
_MAGIC: Final = b"ostcell1"
_UNIT: Final = 1e-3
"""How far a centroid's length may be from one."""
_CLOSE: Final = 2e-5
"""Above the rounding error of a 4,096-term float32 dot product of unit vectors, however it is summed."""
_ZERO: Final = 1e-6


class CellsError(ValueError):
    """What was read does not describe cells; the message says what is wrong."""


@dataclass(frozen=True, slots=True, eq=False)
class Cells:
    """The centroids of a collection. Raises CellsError."""

    centroids: NDArray[np.float32]
    """(1..CELLS_MAX, dim), unit length."""

    def __post_init__(self) -> None:
        made = self.centroids
        if made.ndim != 2 or made.dtype != np.float32:
            raise CellsError(f"centroids are float32 (cells, dim), not {made.dtype} {made.shape}")
        if not 1 <= len(made) <= CELLS_MAX or not 1 <= made.shape[1] <= DIM_MAX:
            raise CellsError(f"1 to {CELLS_MAX} cells of 1 to {DIM_MAX} dimensions, not {made.shape}")
        lengths = np.linalg.norm(made.astype(np.float64), axis=1)
        if not np.isfinite(lengths).all() or np.abs(lengths - 1).max() > _UNIT:
            raise CellsError("a centroid is not of unit length")

    @property
    def count(self) -> int:
        """How many cells there are."""
        return len(self.centroids)

    @property
    def digest(self) -> str:
        """Names the content: sha256 of `to_bytes`, 64 hex digits."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    def to_bytes(self) -> bytes:
        """Magic, cells, dim, then little-endian float32 in rows."""
        return _HEAD.pack(_MAGIC, *self.centroids.shape) + self.centroids.astype("<f4").tobytes()

    @classmethod
    def from_bytes(cls, data: bytes) -> Cells:
        """What `to_bytes` wrote. Raises CellsError."""
        if len(data) < _HEAD.size:
            raise CellsError(f"{len(data)} bytes are too few for the head")
        magic, count, dim = _HEAD.unpack_from(data)
        if magic != _MAGIC:
            raise CellsError(f"begins with {magic!r}, not {_MAGIC!r}")
        if not 1 <= count <= CELLS_MAX or not 1 <= dim <= DIM_MAX or len(data) != _HEAD.size + 4 * count * dim:
            raise CellsError(f"{len(data)} bytes do not hold {count} cells of {dim} dimensions")
        return cls(np.frombuffer(data, dtype="<f4", offset=_HEAD.size).astype(np.float32).reshape(count, dim))

    def nearest(self, vectors: NDArray[np.float32]) -> NDArray[np.int64]:
        """The cell int64 (n,) of each unit vector (n, dim); the least number wins a tie."""
        cosines = vectors @ self.centroids.T
        cells: NDArray[np.int64] = cosines.argmax(axis=1).astype(np.int64)
        best = cosines[np.arange(len(cells)), cells]
        rivals = cosines >= best[:, None] - np.float32(_CLOSE)
        for place in np.flatnonzero(rivals.sum(axis=1) > 1):
            candidates = np.flatnonzero(rivals[place])
            cells[place] = candidates[self._cosines(vectors[place], candidates).argmax()]
        return cells

    def of_document(self, passages: NDArray[np.float32]) -> int:
        """The cell of a document by its passages' unit vectors (n, dim), n >= 1."""
        return int(self.nearest(centre(passages)[None, :])[0])

    def distances(self, query: NDArray[np.float32]) -> NDArray[np.float64]:
        """Cosine distances float64 (cells,), 0 to 2, of a unit query (dim,)."""
        return np.clip(1.0 - self._cosines(query, np.arange(self.count)), 0.0, 2.0)

    def _cosines(self, vector: NDArray[np.float32], cells: NDArray[np.intp]) -> NDArray[np.float64]:
        found: NDArray[np.float64] = np.einsum(
            "ij,j->i", self.centroids[cells].astype(np.float64), vector.astype(np.float64)
        )
        return found


def centre(passages: NDArray[np.float32]) -> NDArray[np.float32]:
    """The normalised mean (dim,) of unit vectors (n, dim), n >= 1; the first of them when they cancel out."""
    if passages.ndim != 2 or not len(passages):
        raise ValueError(f"a document has at least one passage vector (n, dim), not {passages.shape}")
    total = passages.astype(np.float64).sum(axis=0)
    length = float(np.linalg.norm(total))
    if length < _ZERO:
        return np.array(passages[0], dtype=np.float32)
    made: NDArray[np.float32] = (total / length).astype(np.float32)
    return made
