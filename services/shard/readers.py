"""A replica's read connections: one per search at a time, reused."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Empty, LifoQueue

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
        if self._idle.full():
            reader.database.close()
        else:
            self._idle.put_nowait(reader)

    def close(self) -> None:
        """Close the idle connections."""
        while not self._idle.empty():
            self._idle.get_nowait().database.close()
