"""The index that filters are answered from: (field, value, rid) of every stored passage, live or not, in SQLite.

It is derived from the payloads and written in the transaction of the passage. Rows are immutable and rids are never
used again, so an entry is either right for ever or damaged. An entry carries no checksum of its own: a passage that it
wrongly names is found out when the passage is served, because the filter is evaluated once more on the verified
payload; one that it wrongly leaves out is found by `missing`, which the scrub calls.

A field is declared with one type (mesh file), so values of one field compare as that type: text by its bytes, integers
as integers, numbers as doubles, flags as 0 and 1. `document_id` is a column of the passages and needs no entry.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from observability.logs import logger
from ostraka.v1 import passage_pb2
from services.runtime.conditions import Between, In, Value, values_of
from services.runtime.config import MetadataKind
from services.shard.store import Database, StoreFullError

_TABLE: Final = """CREATE TABLE IF NOT EXISTS metadata (
    field INTEGER NOT NULL, value NOT NULL, rid INTEGER NOT NULL, PRIMARY KEY (field, value, rid)
) WITHOUT ROWID"""
_SCHEMA_KEY: Final = "metadata_schema"
_FORGET_SCHEMA: Final = "DELETE FROM meta WHERE k = 'metadata_schema'"
"""An index that is being built belongs to no declaration until it is whole."""
_INSERT: Final = "INSERT OR IGNORE INTO metadata (field, value, rid) VALUES (?, ?, ?)"
_LAYOUT: Final = 1
ROWS_PER_STEP: Final = 4_096
"""Passages read at once while the index is built."""
Stored = tuple[int, str, bytes]
"""(rid, document, payload)"""
_LOG = logger("shard")


class MetadataDamagedError(Exception):
    """The index is wrong about passages; `rids` are theirs, where they are known."""

    def __init__(self, rids: Sequence[int] = ()) -> None:
        self.rids = tuple(rids)
        what = f"{len(self.rids)} passages" if rids else "passages that it does not name"
        super().__init__(f"the metadata index is wrong about {what}; it is being mended")


class MetadataUnavailableError(Exception):
    """There is no index to answer a filter from; the message says why."""


@dataclass(frozen=True, slots=True)
class Span:
    """Rids from `low` to `high`, both included."""

    low: int
    high: int


class MetadataIndex:
    """The index of one replica. `add`, `remove` and `mend` belong to the writer; the rest takes any connection."""

    def __init__(self, declared: Mapping[str, MetadataKind]) -> None:
        self.declared = dict(declared)
        self.problem = ""
        """Why there is no index; empty when there is one."""
        self._numbers = {name: number for number, name in enumerate(["source", *sorted(self.declared)])}

    def ensure(self, database: Database) -> None:
        """Make the index what the declaration asks for: built anew when the database has none or another's.

        A full disk leaves the replica without an index and says so in `problem`. Raises StoreError.
        """
        wanted = json.dumps([_LAYOUT, sorted(self.declared.items())])
        row = database.first("SELECT v FROM meta WHERE k = ?", (_SCHEMA_KEY,))
        if row is not None and row[0] == wanted:
            return
        try:
            rows = self._build(database, wanted)
        except StoreFullError as error:
            self.problem = f"the metadata index could not be built: {error}"
            _LOG.error("no metadata index; filters are refused until a restart", reason=str(error))
            return
        if rows:
            _LOG.info("metadata index built", rows=rows, fields=sorted(self.declared))

    def add(self, database: Database, rid: int, document_id: str, payload: bytes) -> None:
        """Index one passage, in the caller's transaction. Raises StoreError."""
        if not self.problem:
            database.many(_INSERT, list(self._entries(rid, document_id, payload)))

    def remove(self, database: Database, rows: Iterable[Stored]) -> None:
        """Forget passages that are deleted in the caller's transaction. Raises StoreError."""
        if not self.problem:
            entries = [entry for row in rows for entry in self._entries(*row)]
            database.many("DELETE FROM metadata WHERE field = ? AND value = ? AND rid = ?", entries)

    def mend(self, database: Database, rids: Sequence[int]) -> None:
        """Derive the entries of these passages anew, in the caller's transaction; reads the whole index, and removes
        what names no passage at all. Raises StoreError."""
        listed = json.dumps([int(rid) for rid in rids])
        database.rows("DELETE FROM metadata WHERE typeof(rid) <> 'integer'")
        database.rows("DELETE FROM metadata WHERE rid IN (SELECT value FROM json_each(?))", (listed,))
        sql = "SELECT rid, document, payload FROM passages WHERE rid IN (SELECT value FROM json_each(?))"
        for row in database.rows(sql, (listed,)):
            self.add(database, *row)

    def missing(self, database: Database, rows: Iterable[Stored]) -> list[int]:
        """Those of some verified passages that the index does not name as it should, by rid. Raises StoreError."""
        if self.problem:
            return []
        sql = "SELECT 1 FROM metadata WHERE field = ? AND value = ? AND rid = ?"
        return [row[0] for row in rows if any(not database.rows(sql, entry) for entry in self._entries(*row))]

    def rids(self, database: Database, test: In | Between, span: Span) -> NDArray[np.int64]:
        """The passages within `span` that pass one test, ascending, (n,) int64.

        Raises MetadataUnavailableError, MetadataDamagedError, StoreError.
        """
        if self.problem:
            raise MetadataUnavailableError(self.problem)
        if test.field == "document_id":
            # The plus keeps SQLite from walking the passages themselves, with their vectors, in the order of rids.
            table, value, parameters = "passages", "document", []
            within = "+rid BETWEEN ? AND ?"
        else:
            table, value, parameters = "metadata", "value", [self._numbers[test.field]]
            within = "rid BETWEEN ? AND ? AND field = ?"
        clause, wanted = _clause(value, test)
        # One text instead of a million rows of one number; a flipped bit may have made a rid something else.
        listed = "group_concat(CASE typeof(rid) WHEN 'integer' THEN rid END)"
        sql = f"SELECT count(*), {listed} FROM {table} WHERE {within} AND {clause}"  # noqa: S608 # constants
        count, text = database.rows(sql, (span.low, span.high, *parameters, *wanted))[0]
        found = np.fromstring(text or "", dtype=np.int64, sep=",")
        if len(found) != count:
            raise MetadataDamagedError
        return np.sort(found)

    def _build(self, database: Database, wanted: str) -> int:
        _in_transaction(database, ["DROP TABLE IF EXISTS metadata", _TABLE, _FORGET_SCHEMA], ())
        last, rows = 0, 0
        while found := database.rows(
            "SELECT rid, document, payload FROM passages WHERE rid > ? ORDER BY rid LIMIT ?", (last, ROWS_PER_STEP)
        ):
            entries = [entry for row in found for entry in self._entries(*row)]
            _in_transaction(database, [], entries)
            last, rows = found[-1][0], rows + len(found)
        database.rows("INSERT OR REPLACE INTO meta (k, v) VALUES (?, ?)", (_SCHEMA_KEY, wanted))
        return rows

    def _entries(self, rid: int, document_id: str, payload: bytes) -> Iterator[tuple[int, Value, int]]:
        try:
            passage = passage_pb2.Passage.FromString(payload)
        except (DecodeError, TypeError):
            return  # damaged: whoever reads the passage finds out
        for name, value in values_of(passage, document_id, self.declared).items():
            number = self._numbers.get(name)
            if number is not None:
                yield number, value, rid


def _in_transaction(database: Database, statements: Sequence[str], entries: Sequence[tuple[int, Value, int]]) -> None:
    database.begin()
    try:
        for statement in statements:
            database.rows(statement)
        database.many(_INSERT, entries)
        database.commit()
    except BaseException:
        database.rollback()
        raise


def _clause(column: str, test: In | Between) -> tuple[str, list[Value]]:
    """(SQL with marks, what to put there)"""
    if isinstance(test, In):
        return f"{column} IN ({','.join('?' * len(test.values))})", list(test.values)
    parts: list[str] = []
    values: list[Value] = []
    for bound, sign in ((test.low, ">" if test.low_open else ">="), (test.high, "<" if test.high_open else "<=")):
        if bound is not None:
            parts.append(f"{column} {sign} ?")
            values.append(bound)
    return " AND ".join(parts), values
