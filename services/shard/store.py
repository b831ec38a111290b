"""SQLite, the truth of a replica; the only module that imports apsw.

`Database` is one connection with the durability this project promises: write-ahead log, synchronous=FULL, so a
committed transaction has been fsynced. SQLite's errors become four of ours, because the caller's answer differs:

    StoreError
    |- StoreFullError       the disk or the page limit is full: rolled back, nothing changed, may be tried again
    |- StoreCorruptError    the file is not a sound database: the replica is lost
    `- StoreIOError         a read, write or fsync failed: what the file holds is unknown until it is reopened
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import apsw

BUSY_MS = 10_000
CACHE_KIB_WRITER = 4_096
CACHE_KIB_READER = 4_096

LOG_BYTES_KEPT = 16 * 1024 * 1024
"""A write-ahead log that grew beyond this is cut when it is begun anew."""

Value = int | str | bytes | float | None
Row = tuple[Any, ...]


class StoreError(Exception):
    """SQLite refused or failed."""


class StoreFullError(StoreError):
    """No space; the transaction has been rolled back."""


class StoreCorruptError(StoreError):
    """Not a sound database."""


class StoreIOError(StoreError):
    """The disk failed; the process must not go on with this file."""


_KINDS: tuple[tuple[type[Exception], type[StoreError]], ...] = (
    (apsw.FullError, StoreFullError),
    (apsw.CorruptError, StoreCorruptError),
    (apsw.NotADBError, StoreCorruptError),
    (apsw.IOError, StoreIOError),
    (apsw.ReadOnlyError, StoreIOError),
    (apsw.CantOpenError, StoreIOError),
)


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except apsw.Error as error:
        raise _ours(path, error) from error


def _ours(path: Path, error: apsw.Error) -> StoreError:
    for kind, ours in _KINDS:
        if isinstance(error, kind):
            return ours(f"{path}: {error}")
    return StoreError(f"{path}: {type(error).__name__}: {error}")


class Database:
    """One connection. Used by one thread at a time; a reader never blocks the writer (write-ahead log)."""

    def __init__(self, path: Path, *, writable: bool) -> None:
        """Open `path`; a writable connection creates it. Raises StoreError."""
        self.path = path
        flags = apsw.SQLITE_OPEN_READWRITE | (apsw.SQLITE_OPEN_CREATE if writable else 0)
        with _translated(path):
            self._connection = apsw.Connection(str(path), flags=flags)
            self._connection.set_busy_timeout(BUSY_MS)
        if writable:
            self.rows("PRAGMA journal_mode=WAL")
            self.rows("PRAGMA synchronous=FULL")
            self.rows("PRAGMA wal_autocheckpoint=0")
            self.rows(f"PRAGMA journal_size_limit={LOG_BYTES_KEPT}")
            self.rows(f"PRAGMA cache_size=-{CACHE_KIB_WRITER}")
        else:
            self.rows("PRAGMA query_only=ON")
            self.rows(f"PRAGMA cache_size=-{CACHE_KIB_READER}")

    def rows(self, sql: str, parameters: Sequence[Value] = ()) -> list[Row]:
        """Run one statement and return all its rows. Raises StoreError."""
        try:
            return list(self._connection.execute(sql, tuple(parameters)))
        except apsw.Error as error:
            raise _ours(self.path, error) from error
        except UnicodeDecodeError:
            return list(self._salvaged(sql, parameters))

    def first(self, sql: str, parameters: Sequence[Value] = ()) -> Row | None:
        """The first row, or None. Raises StoreError."""
        found = self.rows(sql, parameters)
        return found[0] if found else None

    def each(self, sql: str, parameters: Sequence[Value] = ()) -> Iterator[Row]:
        """Rows one by one, for results too large to hold. Raises StoreError."""
        given = 0
        with _translated(self.path):
            try:
                for row in self._connection.execute(sql, tuple(parameters)):
                    given += 1
                    yield row
            except UnicodeDecodeError:
                yield from islice(self._salvaged(sql, parameters), given, None)

    def _salvaged(self, sql: str, parameters: Sequence[Value]) -> Iterator[Row]:
        """The rows of a query of which some text is not UTF-8 since a bit flipped, with U+FFFD where it is not: no
        checksum holds over that, so the row is damaged like any other. Raises StoreCorruptError for other statements.
        """
        if not sql.lstrip().startswith("SELECT"):
            raise StoreCorruptError(f"{self.path}: text that is not UTF-8")
        with _translated(self.path):
            names = [column[0] for column in self._connection.execute(sql, tuple(parameters)).get_description()]
            columns = [f"CASE typeof({name}) WHEN 'text' THEN CAST({name} AS BLOB) ELSE {name} END" for name in names]
            types = [f"typeof({name})" for name in names]
            wrapped = f"SELECT {', '.join(columns + types)} FROM ({sql})"  # noqa: S608 # statements of our own
            for row in self._connection.execute(wrapped, tuple(parameters)):
                values, kinds = row[: len(names)], row[len(names) :]
                yield tuple(
                    bytes(value).decode(errors="replace") if kind == "text" else value
                    for value, kind in zip(values, kinds, strict=True)
                )

    def many(self, sql: str, parameters: Sequence[Sequence[Value]]) -> None:
        """Run one statement for each tuple of parameters. Raises StoreError."""
        with _translated(self.path):
            self._connection.executemany(sql, [tuple(line) for line in parameters])

    @property
    def in_transaction(self) -> bool:
        return bool(self._connection.in_transaction)

    def changed(self) -> int:
        """Rows changed by the last statement."""
        return self._connection.changes()

    def last_rowid(self) -> int:
        return self._connection.last_insert_rowid()

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Everything read inside sees one committed state."""
        self.rows("BEGIN")
        try:
            yield
        finally:
            self._end("COMMIT")

    def begin(self) -> None:
        """Open a write transaction. Raises StoreError."""
        self.rows("BEGIN IMMEDIATE")

    def commit(self) -> None:
        """Make the transaction durable. Raises StoreError; after any error the caller rolls back."""
        self.rows("COMMIT")

    def rollback(self) -> None:
        """Undo the open transaction, if SQLite has not done so itself."""
        self._end("ROLLBACK")

    def _end(self, verb: str) -> None:
        with _translated(self.path):
            if self.in_transaction:
                self._connection.execute(verb)

    def checkpoint(self) -> None:
        """Move committed pages from the log into the file without waiting for anyone. Raises StoreError."""
        self.rows("PRAGMA wal_checkpoint(PASSIVE)")

    def cache_bytes(self) -> int:
        """Memory of the connection's page cache. Raises StoreError."""
        with _translated(self.path):
            return int(self._connection.status(apsw.SQLITE_DBSTATUS_CACHE_USED)[0])

    def close(self) -> None:
        with _translated(self.path):
            self._connection.close()
