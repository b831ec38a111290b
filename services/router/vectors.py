"""Vectors as they cross the wire: checked, normalised, and rounded to what the mesh stores.

On the wire a vector is little-endian float32. The mesh stores unit vectors rounded to float16, and the
rounding is done here, before anything is sent, so that a row scores the same on every replica.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

F32 = np.dtype("<f4")
F16 = np.dtype("<f2")
# Below this squared length float32 has lost digits, so the norm is taken again in float64.
SQUARE_SAFE_MIN = 1e-20


def vector_problem(dim_given: int, data: bytes, dim: int) -> str:
    """What is wrong with the shape of a vector, in words that follow the field's name; empty when nothing is."""
    if dim_given != dim:
        return f"has dimension {dim_given}; the collection has {dim}"
    if len(data) != 4 * dim:
        return f"has {len(data)} bytes of data; dimension {dim} needs {4 * dim} (little-endian float32)"
    return ""


def unit(data: bytes) -> NDArray[np.float32] | str:
    """The vector scaled to length one, shape (dim,) float32; or what is wrong with its values."""
    values = np.frombuffer(data, dtype=F32)
    with np.errstate(over="ignore", invalid="ignore"):
        square = float(np.dot(values, values))
    if SQUARE_SAFE_MIN < square < math.inf:
        return values * np.float32(1.0 / math.sqrt(square))
    wide = values.astype(np.float64)
    if not np.isfinite(wide).all():
        return "contains NaN or infinity"
    norm = float(np.linalg.norm(wide))
    if norm == 0.0:
        return "is all zeros, which has no direction"
    return (wide / norm).astype(np.float32)


def half_rows(rows: Sequence[NDArray[np.float32]] | NDArray[np.float32]) -> list[bytes]:
    """Unit vectors as they are stored: 2 * dim bytes of little-endian float16 each."""
    if len(rows) == 0:
        return []
    halves = np.ascontiguousarray(np.asarray(rows, dtype=np.float32).astype(F16))
    return [row.tobytes() for row in halves]


def widened(half: bytes) -> bytes:
    """A stored float16 vector as the wire's little-endian float32."""
    return np.frombuffer(half, dtype=F16).astype(F32).tobytes()
