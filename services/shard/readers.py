"""A replica's read connections: one per search at a time, reused."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Empty, Full, LifoQueue

from services.shard.rows_reader import RowsReader
from services.shard.store import Database


class Readers:
    """Lends read connections; opens one when all are lent out, keeps at most `kept` idle."""

    def __init__(self, path: Path, kept: int) -> None:
        self._path = path
        self._idle: LifoQueue[RowsReader] = LifoQueue(maxsize=kept)

    @contextmanager
    def lend(self) -> Iterator[RowsReader]:
        """A reader for the block; not shared meanwhile. Raises StoreError."""
        try:
            reader = self._idle.get_nowait()
        except Empty:
            reader = RowsReader(Database(self._path, writable=False))
        try:
            yield reader
        except BaseException:
            reader.database.close()
            raise
        self._give_back(reader)

    def cache_bytes(self) -> int:
        """Memory of the idle connections' page caches: all of them, between searches. Raises StoreError."""
        borrowed: list[RowsReader] = []
        try:
            while True:
                try:
                    borrowed.append(self._idle.get_nowait())
                except Empty:
                    return sum(reader.database.cache_bytes() for reader in borrowed)
        finally:
            # The least recently used goes back first, so that the order is as before.
            for reader in reversed(borrowed):
                self._give_back(reader)

    def _give_back(self, reader: RowsReader) -> None:
        try:
            self._idle.put_nowait(reader)
        except Full:  # others came back meanwhile
            reader.database.close()

    def close(self) -> None:
        """Close the idle connections."""
        while not self._idle.empty():
            self._idle.get_nowait().database.close()
