"""The FAISS module itself, and the array types that cross its border."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import faiss as faiss_module
import numpy as np
from numpy.typing import NDArray

faiss: Any = faiss_module
"""The wheel's stubs describe the C++ signatures; the Python wrappers take arrays and keywords."""

VERSION = str(faiss.__version__)

Floats = NDArray[np.float32]
Positions = NDArray[np.int64]
Bitmap = NDArray[np.uint8]

SEED = 20_260_101


def use_one_thread() -> None:
    """Make FAISS calls of the calling thread single-threaded; OpenMP keeps this per thread."""
    faiss.omp_set_num_threads(1)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Let FAISS calls of the calling thread use `count` threads, then one again."""
    faiss.omp_set_num_threads(count)
    try:
        yield
    finally:
        use_one_thread()


def contiguous(vectors: NDArray[Any]) -> Floats:
    """The same values as contiguous float32, copied only when they are not."""
    return np.ascontiguousarray(vectors, dtype=np.float32)
