"""The lexical file of a sealed segment: lengths, postings and terms, memory-mapped, immutable.

Layout, little-endian: 64 bytes of header (magic, counts, the analyzer's name), then uint32 lengths (rows,), uint32
positions and uint16 frequencies (postings,), uint64 terms (terms,) and int64 offsets (terms + 1,), each section at a
multiple of 8 bytes. The segment's manifest holds the file's sha256.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
from numpy.typing import NDArray

from services.shard.lexical_postings import POSITIONS_MAX, Moved, Postings, join, survivors

LEXICAL_FILE: Final = "lexical.bin"
_HEADER: Final = struct.Struct("<8sQQQQ24s")
_MAGIC: Final = b"OSTLEX01"


class LexicalFileError(ValueError):
    """The file is not a lexical file of this format, or is cut."""


@dataclass(frozen=True, slots=True)
class LexicalSegment:
    """An open lexical file."""

    analyzer: str
    postings: Postings
    lengths: NDArray[np.uint32]
    """(rows,), terms of each passage."""
    tokens: int
    """Sum of `lengths`, dead rows included."""


@dataclass(frozen=True, slots=True)
class LexicalSource:
    """Postings that go into a new file, and the lengths of the rows they speak of, by old position."""

    runs: tuple[Postings, ...]
    lengths: NDArray[np.uint32]
    rids: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class _Sections:
    """Where everything lies."""

    rows: int
    postings: int

    @property
    def positions(self) -> int:
        return _aligned(_HEADER.size + 4 * self.rows)

    @property
    def frequencies(self) -> int:
        return _aligned(self.positions + 4 * self.postings)

    @property
    def terms(self) -> int:
        return _aligned(self.frequencies + 2 * self.postings)


def write(
    path: Path,
    rids: NDArray[np.int64],
    sources: Sequence[LexicalSource],
    analyzer: str,
    pause: Callable[[], None] = lambda: None,
) -> None:
    """Write the file of the rows `rids` (by new position), each of which is in exactly one source.

    `pause` is called between chunks of half a million postings. Raises OSError.
    """
    assert len(rids) < POSITIONS_MAX, "positions have 28 bits"
    order = np.argsort(rids, kind="stable")
    lengths = np.zeros(len(rids), dtype=np.uint32)
    given = 0
    moved: list[Moved] = []
    for source in sources:
        to = _positions(rids, order, source.rids)
        kept = to >= 0
        given += int(kept.sum())
        lengths[to[kept]] = source.lengths[kept]
        moved += [Moved(run, to) for run in source.runs]
    assert given == len(rids), "every row comes from one source"
    sections = _Sections(len(rids), sum(survivors(part) for part in moved))
    with path.open("wb") as file:
        file.seek(_HEADER.size)
        file.write(lengths.tobytes())
        terms = _write_postings(file, sections, moved, pause)
        file.seek(0)
        tokens = int(lengths.sum(dtype=np.int64))
        header = (_MAGIC, sections.rows, sections.postings, terms, tokens, analyzer.encode())
        file.write(_HEADER.pack(*header))


def open_lexical(path: Path) -> LexicalSegment:
    """Map a file. Raises OSError, LexicalFileError."""
    data = np.memmap(path, dtype=np.uint8, mode="r").view(np.ndarray)
    if len(data) < _HEADER.size:
        raise LexicalFileError(f"{path} is cut")
    magic, rows, postings, terms, tokens, analyzer = _HEADER.unpack(data[: _HEADER.size].tobytes())
    sections = _Sections(rows, postings)
    if magic != _MAGIC or len(data) != sections.terms + 8 * terms + 8 * (terms + 1):
        raise LexicalFileError(f"{path} is not a lexical file, or is cut")

    def section(start: int, count: int, dtype: type[np.generic]) -> NDArray[Any]:
        return data[start : start + count * np.dtype(dtype).itemsize].view(dtype)

    return LexicalSegment(
        analyzer=analyzer.rstrip(b"\0").decode(),
        postings=Postings(
            terms=section(sections.terms, terms, np.uint64),
            offsets=section(sections.terms + 8 * terms, terms + 1, np.int64),
            positions=section(sections.positions, postings, np.uint32),
            frequencies=section(sections.frequencies, postings, np.uint16),
        ),
        lengths=section(_HEADER.size, rows, np.uint32),
        tokens=tokens,
    )


def _write_postings(file: BinaryIO, sections: _Sections, moved: Sequence[Moved], pause: Callable[[], None]) -> int:
    """Everything behind the lengths; returns how many terms there are."""
    terms = [np.empty(0, dtype=np.uint64)]
    counts = [np.empty(0, dtype=np.int64)]
    written = 0
    for chunk in join(moved, pause):
        file.seek(sections.positions + 4 * written)
        file.write(chunk.positions.tobytes())
        file.seek(sections.frequencies + 2 * written)
        file.write(chunk.frequencies.tobytes())
        written += len(chunk.positions)
        terms.append(chunk.terms)
        counts.append(chunk.counts)
    assert written == sections.postings, "no posting is lost on the way"
    distinct = np.concatenate(terms)
    file.seek(sections.terms)
    file.write(distinct.tobytes())
    file.write(np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(np.concatenate(counts))]).tobytes())
    return len(distinct)


def _positions(rids: NDArray[np.int64], order: NDArray[np.int64], wanted: NDArray[np.int64]) -> NDArray[np.int64]:
    """The position in `rids` of each of `wanted`, or -1."""
    if not len(rids):
        return np.full(len(wanted), -1, dtype=np.int64)
    at = np.searchsorted(rids, wanted, sorter=order)
    at = order[np.minimum(at, len(rids) - 1)]
    return np.where(rids[at] == wanted, at, -1)


def _aligned(offset: int) -> int:
    return -(-offset // 8) * 8
