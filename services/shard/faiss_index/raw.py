"""Raw vectors: float16 rows in one file that FAISS reads by mapping it, without anonymous memory.

The file is FAISS's `IndexScalarQuantizer(QT_fp16, METRIC_INNER_PRODUCT)`, whose codes are the rows themselves. It is
written row by row behind a header taken from FAISS, because adding the rows to an index first would hold them all.
"""

from __future__ import annotations

import functools
import struct
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from services.shard.faiss_index.candidates import selector_of
from services.shard.faiss_index.library import VERSION, Bitmap, Floats, Positions, contiguous, faiss
from services.shard.faiss_index.sealed_file import IndexFileError

ITEM_BYTES = 2
_DIM_AT, _ROWS_AT = 4, 8
_I32, _I64 = struct.Struct("<i"), struct.Struct("<q")


def _serialized(dim: int, rows: NDArray[np.float16]) -> bytes:
    index = faiss.IndexScalarQuantizer(dim, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
    if len(rows):
        index.add(contiguous(rows))
    return bytes(faiss.serialize_index(index).tobytes())


@functools.lru_cache(maxsize=64)
def _empty(dim: int) -> bytes:
    """The file without rows. Checked once per dimension: one row more must give what `header` says."""
    empty = _serialized(dim, np.empty((0, dim), dtype=np.float16))
    row = np.linspace(-1, 1, dim, dtype=np.float16)[None, :]
    assert _serialized(dim, row) == _patched(empty, dim, 1) + row.astype("<f2").tobytes(), (
        f"FAISS {VERSION} lays out a scalar quantiser's file in another way"
    )
    return empty


def _patched(empty: bytes, dim: int, rows: int) -> bytes:
    """Number of rows in front, length of the codes at the end."""
    head = empty[:_ROWS_AT] + _I64.pack(rows) + empty[_ROWS_AT + _I64.size : -_I64.size]
    return head + _I64.pack(rows * dim * ITEM_BYTES)


def header(dim: int, rows: int) -> bytes:
    """What stands in front of the rows."""
    return _patched(_empty(dim), dim, rows)


class RawWriter:
    """Writes a raw vectors file in pieces; leaving the `with` block completes it. The caller makes it durable."""

    def __init__(self, path: Path, dim: int) -> None:
        """Raises OSError."""
        self._path, self._dim = path, dim
        self._rows = 0
        self._file: BinaryIO = path.open("wb")
        self._file.write(header(dim, 0))

    @property
    def rows(self) -> int:
        return self._rows

    def append(self, vectors: NDArray[np.float16]) -> None:
        """Add float16 rows (n, dim). Raises OSError."""
        assert vectors.ndim == 2, vectors.shape
        assert vectors.shape[1] == self._dim, (vectors.shape, self._dim)
        self._file.write(np.ascontiguousarray(vectors, dtype="<f2").data)
        self._rows += len(vectors)

    def close(self) -> None:
        """Write the number of rows. Raises OSError."""
        if self._file.closed:
            return
        try:
            self._file.seek(0)
            self._file.write(header(self._dim, self._rows))
        finally:
            self._file.close()

    def __enter__(self) -> RawWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is None:
            self.close()
        else:
            self._file.close()  # unfinished: its header says no rows, so it is refused when opened


class RawVectors:
    """An open raw vectors file. Searched by many threads."""

    def __init__(self, index: Any, rows: NDArray[np.float16]) -> None:
        self.index = index
        """FAISS's, for `RefinedIndex`."""
        self.vectors = rows
        """float16 (rows, dim), memory-mapped, read-only; not aligned, which numpy minds little and FAISS not at all."""

    @property
    def rows(self) -> int:
        return len(self.vectors)

    @property
    def dim(self) -> int:
        return int(self.vectors.shape[1])

    def search(self, queries: Floats, count: int, alive: Bitmap | None) -> tuple[Floats, Positions]:
        """Scan everything: (scores, positions), both (n, count), best first, then -1."""
        selector = selector_of(alive)
        scores, found = self.index.search(contiguous(queries), count, params=faiss.SearchParameters(sel=selector))
        return scores, np.asarray(found, dtype=np.int64)

    def best_of(self, queries: Floats, candidates: Positions, count: int) -> tuple[Floats, Positions]:
        """Re-rank candidates (n, m), -1 only at the end: (scores, positions), both (n, count), best first, then -1."""
        scores = np.full((len(queries), count), -np.inf, dtype=np.float32)
        found = np.full((len(queries), count), -1, dtype=np.int64)
        for row, (query, line) in enumerate(zip(queries, candidates, strict=True)):
            # FAISS's own `search_subset` is not implemented for scalar quantisers.
            positions = line[line >= 0]
            values = self.vectors[positions].astype(np.float32) @ query
            best = np.argsort(-values, kind="stable")[:count]
            scores[row, : len(best)], found[row, : len(best)] = values[best], positions[best]
        return scores, found


def open_raw(path: Path, dim: int) -> RawVectors:
    """Map a raw vectors file whose sha256 the caller has verified. Raises OSError, mostly IndexFileError."""
    size = path.stat().st_size
    length = len(header(dim, 0))
    with path.open("rb") as file:
        head = file.read(length)
    if len(head) < length or head[:_DIM_AT] != header(dim, 0)[:_DIM_AT]:
        raise IndexFileError(f"{path}: not a file of raw vectors")
    (held,) = _I32.unpack_from(head, _DIM_AT)
    (rows,) = _I64.unpack_from(head, _ROWS_AT)
    if held != dim:
        raise IndexFileError(f"{path}: vectors of {held} dimensions; {dim} are wanted")
    if rows < 0 or head != header(dim, rows):
        raise IndexFileError(f"{path}: its header is not one that FAISS {VERSION} writes")
    if size != length + rows * dim * ITEM_BYTES:
        raise IndexFileError(f"{path}: {size} bytes are not {rows} rows of {dim} dimensions: cut short or unfinished")
    try:
        index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
    except RuntimeError as error:
        raise OSError(f"{path}: {error}") from error
    if not rows:
        return RawVectors(index, np.empty((0, dim), dtype=np.float16))
    mapped = np.memmap(path, dtype="<f2", mode="r", offset=length, shape=(rows, dim))
    # A plain array: numpy's memmap class costs 25 microseconds per look-up.
    return RawVectors(index, mapped.view(np.ndarray))
