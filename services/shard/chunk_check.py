"""One chunk of rids held against its rows: which live by passages and heads, without trusting a damaged one."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.quorum.clock import Version
from services.quorum.rows import HeadRow
from services.shard import live_bits, schema
from services.shard.damage import DamagedRowError, RowName
from services.shard.live_bits import CHUNK_ROWS
from services.shard.metadata_index import Stored
from services.shard.rows_reader import RowsReader

PAUSE_ROWS = 32
"""Some 1.5 ms of work, in the interpreter that searches want too."""


@dataclass(frozen=True, slots=True)
class ChunkCheck:
    """What is right, and what is wrong, about 8,192 rids."""

    wanted: NDArray[np.bool_]
    """(CHUNK_ROWS,): which live. Where a head is damaged the stored bit is kept."""
    agrees: bool
    """Whether the stored bits pass their checksum and say the same."""
    damaged: tuple[RowName, ...]
    """Live passages and heads that fail their checksum."""
    unindexed: int
    """Sound rows that the index of names does not lead to."""
    rows: tuple[Stored, ...]
    """(rid, document, payload) of the sound live rows."""

    def rids(self, chunk: int) -> NDArray[np.int64]:
        """The rows that live, ascending."""
        return np.flatnonzero(self.wanted).astype(np.int64) + chunk * CHUNK_ROWS


class _Heads:
    """The heads that a chunk's rows name, each read once."""

    def __init__(self, reader: RowsReader) -> None:
        self._reader = reader
        self._found: dict[str, HeadRow | None] = {}
        self.damaged: list[RowName] = []

    def lives(self, name: RowName) -> bool | None:
        """Whether the row lives; None when its head is damaged."""
        if name.document_id not in self._found:
            self._found[name.document_id] = self._read(name.document_id)
        head = self._found[name.document_id]
        return None if head is None else name.version == head.version and name.ordinal < head.passages

    def _read(self, document_id: str) -> HeadRow | None:
        try:
            # A row without any head waits for it: no version is older than that of this stand-in.
            return self._reader.head(document_id) or HeadRow(document_id, 0, Version.ZERO)
        except DamagedRowError as error:
            self.damaged += error.names
            return None


def check(reader: RowsReader, chunk: int, pause: Callable[[], None] = lambda: None) -> ChunkCheck:
    """Read a chunk's rows, whole, in the committed state that `reader` sees. Raises StoreError.

    `pause` is called after every PAUSE_ROWS of them.
    """
    stored, sound = _stored_bits(reader, chunk)
    wanted = np.zeros(CHUNK_ROWS, dtype=np.bool_)
    heads = _Heads(reader)
    damaged: list[RowName] = []
    unsound: list[int] = []
    unindexed = 0
    rows: list[Stored] = []
    first = chunk * CHUNK_ROWS
    for number, (rid, passage) in enumerate(reader.table_rows(first, first + CHUNK_ROWS - 1), start=1):
        if number % PAUSE_ROWS == 0:
            pause()
        if isinstance(passage, RowName):
            damaged.append(passage)
            unsound.append(rid)
            continue
        name = RowName(passage.document_id, passage.ordinal, passage.version)
        unindexed += reader.rid_of(name) != rid
        lives = heads.lives(name)
        wanted[rid - first] = stored[rid - first] if lives is None else lives
        if wanted[rid - first]:
            rows.append((rid, passage.document_id, passage.payload))
    # The index of names still knows a damaged row by the name it was written with.
    for rid, name in _indexed(reader, unsound).items():
        lives = heads.lives(name)
        wanted[rid - first] |= bool(stored[rid - first] if lives is None else lives)
        damaged.append(name)
    agrees = sound and bool((wanted == stored).all())
    live = [name for name in dict.fromkeys((*damaged, *heads.damaged)) if reader.is_damaged(name)]
    return ChunkCheck(wanted, agrees, tuple(live), unindexed, tuple(rows))


def _stored_bits(reader: RowsReader, chunk: int) -> tuple[NDArray[np.bool_], bool]:
    row = reader.database.first("SELECT bits, sum FROM live WHERE chunk = ?", (chunk,))
    if row is None:
        return np.zeros(CHUNK_ROWS, dtype=np.bool_), True
    if not live_bits.is_sound(chunk, row[0], row[1]):
        return np.zeros(CHUNK_ROWS, dtype=np.bool_), False
    return np.unpackbits(np.frombuffer(row[0], dtype=np.uint8), bitorder="little").astype(np.bool_), True


def _indexed(reader: RowsReader, rids: Sequence[int]) -> dict[int, RowName]:
    """The names by which the index leads to these rows; reads the whole index."""
    if not rids:
        return {}
    found = reader.database.rows(
        "SELECT rid, document, ordinal, hlc, src FROM passages INDEXED BY sqlite_autoindex_passages_1"
        " WHERE +rid IN (SELECT value FROM json_each(?))",
        (json.dumps(rids),),
    )
    return {
        row[0]: RowName(row[1], row[2], schema.version_of(row[3], row[4]))
        for row in found
        if all(isinstance(number, int) for number in row[2:])
    }
