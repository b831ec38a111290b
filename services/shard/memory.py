"""Memory of one replica by part, as far as it can be told apart: what it holds itself, and what is mapped from files.

Mapped bytes cost memory only while they are used and are given back under pressure, so they stand apart.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from services.shard.engine import Engine
from services.shard.faiss_index import Kind
from services.shard.segment import INDEX_FILE
from services.shard.view import View

HELD = frozenset({Kind.IVF_PQ_FASTSCAN, Kind.BINARY_IVF})
"""Index kinds that FAISS copies into memory when it opens their file; all others stay in the page cache."""


@dataclass(frozen=True, slots=True)
class MemoryPart:
    """One line of a replica's account."""

    part: str
    bytes: int
    mapped: bool = False


def parts_of(engine: Engine) -> tuple[MemoryPart, ...]:
    """The account of an open replica, from its newest view."""
    view = engine.view
    return (*view_parts(view), *_store_parts(engine))


def view_parts(view: View) -> Iterator[MemoryPart]:
    """What a view holds: delta, indexes, bitmaps, and its segments' files."""
    delta = view.delta
    block = delta.block
    row_bytes = block.vectors.itemsize * block.vectors.shape[1] + block.rids.itemsize
    yield MemoryPart("delta", block.used * row_bytes)
    yield MemoryPart("lexical delta", delta.lexical.bytes)
    yield MemoryPart("alive", delta.alive.nbytes + sum(part.alive.nbytes for part in view.parts))
    found = [
        part.segment.directory
        for part in view.parts
        if part.segment.index is not None and part.segment.index.kind in HELD
    ]
    index = sum((directory / INDEX_FILE).stat().st_size for directory in found)
    yield MemoryPart("index", index)
    yield MemoryPart("segment files", sum(part.segment.bytes_on_disk() for part in view.parts) - index, mapped=True)


def _store_parts(engine: Engine) -> Iterator[MemoryPart]:
    yield MemoryPart("database caches", engine.readers.cache_bytes())
    yield MemoryPart("filters", engine.filters.cache.bytes)
