"""Memory that goes back to the system: malloc keeps what was used once."""

from __future__ import annotations

import mmap

import numpy as np

from services.shard.faiss_index import Floats


def mapping(size: int) -> mmap.mmap:
    """Zeros in a mapping of their own: no memory before they are written, none once nobody refers to them."""
    return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def rows_of_zeros(rows: int, dim: int) -> Floats:
    """float32 (rows, dim) in such a mapping."""
    mapped = mapping(rows * dim * np.dtype(np.float32).itemsize)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        mapped.madvise(mmap.MADV_HUGEPAGE)  # as numpy does: a search reads all of it
    return np.frombuffer(mapped, dtype=np.float32).reshape(rows, dim)
