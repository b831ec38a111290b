"""Alive bitmaps: which positions of a part are visible. Immutable by convention; a change makes a copy.

Bit i of byte i // 8 (least significant first) stands for position i, the layout of FAISS's bitmap selector.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Bitmap = NDArray[np.uint8]
Positions = NDArray[np.int64]


def from_mask(mask: NDArray[np.bool_]) -> Bitmap:
    """A bitmap from one boolean per position."""
    return np.packbits(mask, bitorder="little")


def to_mask(bitmap: Bitmap, length: int) -> NDArray[np.bool_]:
    """One boolean per position, (length,)."""
    return np.unpackbits(bitmap, count=length, bitorder="little").astype(np.bool_)


def count(bitmap: Bitmap) -> int:
    """How many positions are alive."""
    return int(np.bitwise_count(bitmap).sum())


def cleared(bitmap: Bitmap, positions: Positions) -> Bitmap:
    """A copy with `positions` dead; searches that hold the old bitmap are not disturbed."""
    copy = bitmap.copy()
    np.bitwise_and.at(copy, positions >> 3, ~(np.uint8(1) << (positions & 7).astype(np.uint8)))
    return copy


def extended(bitmap: Bitmap, length: int, added: int) -> Bitmap:
    """A copy for `length + added` positions, the added ones alive."""
    grown = np.zeros((length + added + 7) // 8, dtype=np.uint8)
    grown[: len(bitmap)] = bitmap
    fresh = np.arange(length, length + added, dtype=np.int64)
    np.bitwise_or.at(grown, fresh >> 3, np.uint8(1) << (fresh & 7).astype(np.uint8))
    return grown
