"""Which rows live, as one bit for each rid in chunks of 8,192, so that a restart need not join a million rows.

The table `live` is derived from passages and heads and is written in the transaction that changes them. Every chunk
carries a checksum over its number and its bits, and `ReplicaState.rows` counts all of them, so a chunk that is lost is
noticed too. A chunk without a live row has no table row.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from observability.logs import logger
from services.shard import schema
from services.shard.store import Database

CHUNK_ROWS = 8_192
CHUNK_BYTES = CHUNK_ROWS // 8
CHUNKS_CACHED = 256
"""Of the writer; 256 KiB, two million rows."""
_EMPTY = bytes(CHUNK_BYTES)
_LOG = logger("shard")


@dataclass(frozen=True, slots=True)
class LiveBits:
    """The live rows of one committed state, for looking up many rids at once."""

    chunks: NDArray[np.int64]
    """(n,), ascending."""
    bits: NDArray[np.uint8]
    """(n, CHUNK_BYTES); bit i of byte j, least significant first, stands for row 8 j + i of the chunk."""

    @classmethod
    def of(cls, found: dict[int, bytes]) -> LiveBits:
        """From the bits of each chunk."""
        chunks = np.array(sorted(found), dtype=np.int64)
        flat = b"".join(found[int(chunk)] for chunk in chunks)
        return cls(chunks, np.frombuffer(flat, dtype=np.uint8).reshape(len(chunks), CHUNK_BYTES))

    @property
    def count(self) -> int:
        """How many rows live."""
        return int(np.bitwise_count(self.bits).sum())

    def alive(self, rids: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether each of `rids` (n,) lives, (n,)."""
        if not len(self.chunks):
            return np.zeros(len(rids), dtype=np.bool_)
        wanted = rids // CHUNK_ROWS
        slots = np.minimum(np.searchsorted(self.chunks, wanted), len(self.chunks) - 1)
        within = rids % CHUNK_ROWS
        found = (self.bits[slots, within >> 3] >> (within & 7).astype(np.uint8)) & 1
        return np.asarray((found == 1) & (self.chunks[slots] == wanted), dtype=np.bool_)

    def rids(self) -> NDArray[np.int64]:
        """Every live rid, ascending."""
        flat = np.flatnonzero(np.unpackbits(self.bits.reshape(-1), bitorder="little"))
        return np.asarray(self.chunks[flat // CHUNK_ROWS] * CHUNK_ROWS + flat % CHUNK_ROWS, dtype=np.int64)

    def without(self, *gone: NDArray[np.int64]) -> NDArray[np.int64]:
        """The live rids that are in none of `gone`, ascending."""
        mask = np.unpackbits(self.bits.reshape(-1), bitorder="little").astype(np.bool_)
        for rids in gone:
            kept = rids[self.alive(rids)]
            mask[np.searchsorted(self.chunks, kept // CHUNK_ROWS) * CHUNK_ROWS + kept % CHUNK_ROWS] = False
        flat = np.flatnonzero(mask)
        return np.asarray(self.chunks[flat // CHUNK_ROWS] * CHUNK_ROWS + flat % CHUNK_ROWS, dtype=np.int64)


def chunk_sum(chunk: int, bits: bytes) -> bytes:
    """Checksum of a chunk: 8 bytes over its number and its bits."""
    return hashlib.blake2b(b"%d|" % chunk + bits, digest_size=8).digest()


def is_sound(chunk: int, bits: object, checksum: object) -> bool:
    """Whether a stored chunk is what was written."""
    return isinstance(bits, bytes) and len(bits) == CHUNK_BYTES and chunk_sum(chunk, bits) == checksum


def read(database: Database) -> tuple[LiveBits, list[int]]:
    """(the sound chunks, the numbers of the damaged ones). Raises StoreError."""
    found: dict[int, bytes] = {}
    damaged: list[int] = []
    for chunk, bits, checksum in database.rows("SELECT chunk, bits, sum FROM live ORDER BY chunk"):
        if is_sound(chunk, bits, checksum):
            found[chunk] = bits
        else:
            damaged.append(chunk)
    return LiveBits.of(found), damaged


def joined(database: Database, chunk: int) -> bytes:
    """The bits of a chunk as passages and heads say, in one read of its rows. Raises StoreError."""
    sql = f"SELECT p.rid {schema.LIVE} WHERE p.rid BETWEEN ? AND ?"  # constant
    first = chunk * CHUNK_ROWS
    return packed(row[0] - first for row in database.each(sql, (first, first + CHUNK_ROWS - 1)))


def packed(offsets: Iterable[int]) -> bytes:
    """The bits of a chunk in which the rows at `offsets` live."""
    mask = np.zeros(CHUNK_ROWS, dtype=np.uint8)
    mask[np.fromiter(offsets, dtype=np.int64)] = 1
    return np.packbits(mask, bitorder="little").tobytes()


def put(database: Database, chunk: int, bits: bytes) -> None:
    """Store a chunk, in the caller's transaction. Raises StoreError."""
    if bits == _EMPTY:
        database.rows("DELETE FROM live WHERE chunk = ?", (chunk,))
    else:
        database.rows(
            "INSERT OR REPLACE INTO live (chunk, bits, sum) VALUES (?, ?, ?)", (chunk, bits, chunk_sum(chunk, bits))
        )


class LiveBitsWriter:
    """Keeps the table equal to what one writer changes. `change`, then `committed` or `rolled_back`."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._cache: OrderedDict[int, bytes] = OrderedDict()
        self._staged: dict[int, bytes] = {}
        self._rebuilt: set[int] = set()

    @property
    def rebuilt(self) -> bool:
        """Whether this transaction met a damaged chunk and derived it anew: what `change` returns is then no count."""
        return bool(self._rebuilt)

    def is_live(self, rid: int) -> bool:
        """Whether the row lived before this transaction, or after `change` in it. Raises StoreError."""
        chunk, offset = divmod(rid, CHUNK_ROWS)
        return bool(self._read(chunk)[offset >> 3] >> (offset & 7) & 1)

    def change(self, born: Iterable[int], dead: Iterable[int]) -> int:
        """Set and clear bits, in the transaction under way; by how much the number of live rows grew. `dead` wins.

        Raises StoreError.
        """
        wanted = sorted({**dict.fromkeys(born, True), **dict.fromkeys(dead, False)}.items())
        grown = 0
        for chunk, entries in groupby(wanted, key=lambda entry: entry[0] // CHUNK_ROWS):
            before = self._read(chunk)
            changed = bytearray(before)
            for rid, lives in entries:
                offset = rid % CHUNK_ROWS
                bit = 1 << (offset & 7)
                if lives:
                    changed[offset >> 3] |= bit
                else:
                    changed[offset >> 3] &= ~bit
            after = bytes(changed)
            if after != before or chunk in self._rebuilt:
                grown += after_minus_before(after, before)
                put(self._database, chunk, after)
                self._staged[chunk] = after
        return grown

    def rewrite(self, chunk: int, bits: bytes) -> None:
        """Store a chunk whatever is stored, in the transaction under way. Raises StoreError."""
        put(self._database, chunk, bits)
        self._staged[chunk] = bits

    def committed(self) -> None:
        """The transaction is durable."""
        self._cache.update(self._staged)
        self._staged, self._rebuilt = {}, set()
        while len(self._cache) > CHUNKS_CACHED:
            self._cache.popitem(last=False)

    def rolled_back(self) -> None:
        """The transaction was undone."""
        if self._rebuilt:
            self._cache.clear()  # derived from rows that are no longer so
        self._staged, self._rebuilt = {}, set()

    def _read(self, chunk: int) -> bytes:
        bits = self._staged.get(chunk)
        if bits is None:
            bits = self._cache.get(chunk)
            if bits is not None:
                self._cache.move_to_end(chunk)
        if bits is None:
            bits = self._cache[chunk] = self._stored(chunk)
        return bits

    def _stored(self, chunk: int) -> bytes:
        row = self._database.first("SELECT bits, sum FROM live WHERE chunk = ?", (chunk,))
        if row is None:
            return _EMPTY
        if is_sound(chunk, row[0], row[1]):
            return bytes(row[0])
        _LOG.error("live bits fail their checksum; derived anew", chunk=chunk)
        self._rebuilt.add(chunk)
        return joined(self._database, chunk)


def after_minus_before(after: bytes, before: bytes) -> int:
    """By how many set bits two chunks differ."""
    return int.from_bytes(after, "little").bit_count() - int.from_bytes(before, "little").bit_count()
