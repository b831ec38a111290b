"""Making a replica's database ready: created when it is missing, brought up from an older format, and what is derived
from its rows repaired where it fails its checksum.

All of it happens before anyone reads a row, each in one transaction, so that a crash on the way leaves what was there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from services.quorum.gtid import GtidSet
from services.shard import live_bits, recount, schema
from services.shard.replica_state import ReplicaState, read_state, write_state
from services.shard.rows_reader import RowsReader
from services.shard.store import Database, StoreCorruptError

OLDEST_FORMAT = 1


def prepare(database: Database, replica_id: str) -> list[str]:
    """Create, upgrade and check; returns what was found damaged and derived anew, in words.

    Raises StoreCorruptError when the file belongs to another replica or has a format that is not known, StoreError.
    """
    with _transaction(database):
        found = _format(database)
        for statement in schema.TABLES:
            database.rows(statement)
        if found is None:
            _put(database, "format", schema.FORMAT)
            _put(database, "replica_id", replica_id)
            write_state(database, ReplicaState(applied=GtidSet.EMPTY.digest()))
        owner = database.first("SELECT v FROM meta WHERE k = 'replica_id'")
        if owner is None or owner[0] != replica_id:
            raise StoreCorruptError(f"{database.path}: replica_id is {owner and owner[0]!r}, expected {replica_id!r}")
        if found == 1:
            _from_format_1(database)
    return _repair(database)


def _format(database: Database) -> int | None:
    """The format of the file; None when it is empty. Raises StoreCorruptError."""
    if database.first("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'meta'") is None:
        return None
    row = database.first("SELECT v FROM meta WHERE k = 'format'")
    found: Any = row and row[0]
    if not isinstance(found, int) or not OLDEST_FORMAT <= found <= schema.FORMAT:
        known = f"{OLDEST_FORMAT} to {schema.FORMAT}"
        raise StoreCorruptError(f"{database.path}: format is {found!r}, this version of Ostraka reads {known}")
    return found


def _from_format_1(database: Database) -> None:
    """Format 1 had no live bits, no state record, and operations without content and checksum."""
    database.rows("ALTER TABLE ops ADD COLUMN content BLOB NOT NULL DEFAULT x''")
    database.rows("ALTER TABLE ops ADD COLUMN sum BLOB NOT NULL DEFAULT x''")
    reader = RowsReader(database)
    recount.sign_ops(reader)
    sums = recount.sums(reader)
    row = database.first("SELECT v FROM meta WHERE k = 'hlc_max'")
    applied = reader.intervals()
    if applied is None:
        raise StoreCorruptError(f"{database.path}: the applied set has an impossible interval")
    write_state(
        database,
        ReplicaState(
            digest=sums.digest,
            documents=sums.documents,
            rows=recount.rewrite_live(database),
            hlc_max=0 if row is None else schema.from_sql(row[0]),
            applied=applied.digest(),
        ),
    )
    database.rows("DELETE FROM meta WHERE k = 'hlc_max'")
    _put(database, "format", schema.FORMAT)


def _repair(database: Database) -> list[str]:
    state = read_state(database)
    bits, damaged = live_bits.read(database)
    reader = RowsReader(database)
    applied = reader.intervals()
    found: list[tuple[str, Callable[[ReplicaState], ReplicaState]]] = []
    if state is None:
        found.append(("the state record fails its checksum", lambda _: _recounted(reader)))
    elif applied is None or applied.digest() != state.applied:
        found.append(("the applied set differs from its digest", lambda kept: _reapplied(reader, kept)))
    if damaged:
        found.append((f"{len(damaged)} chunks of live bits fail their checksum", _relived(database)))
    elif state is not None and bits.count != state.rows:
        found.append((f"{bits.count} rows are marked live, not {state.rows}", _relived(database)))
    if not found:
        return []
    with _transaction(database):
        repaired = state or ReplicaState()
        for _, repair in found:
            repaired = repair(repaired)
        if state is None:
            repaired = _relived(database)(repaired)
        write_state(database, repaired)
    return [words for words, _ in found]


def _recounted(reader: RowsReader) -> ReplicaState:
    sums = recount.sums(reader)
    applied, hlc_max = recount.applied(reader)
    recount.rewrite_applied(reader.database, applied)
    return ReplicaState(sums.digest, sums.documents, 0, hlc_max, applied.digest())


def _reapplied(reader: RowsReader, kept: ReplicaState) -> ReplicaState:
    applied, hlc_max = recount.applied(reader)
    recount.rewrite_applied(reader.database, applied)
    # A batch that is no longer claimed has no term in the digest.
    digest = recount.sums(reader).digest
    return replace(kept, digest=digest, applied=applied.digest(), hlc_max=max(kept.hlc_max, hlc_max))


def _relived(database: Database) -> Callable[[ReplicaState], ReplicaState]:
    return lambda kept: replace(kept, rows=recount.rewrite_live(database))


def _put(database: Database, key: str, value: int | str) -> None:
    database.rows("INSERT OR REPLACE INTO meta (k, v) VALUES (?, ?)", (key, value))


@contextmanager
def _transaction(database: Database) -> Iterator[None]:
    database.begin()
    try:
        yield
        database.commit()
    except BaseException:
        database.rollback()
        raise
