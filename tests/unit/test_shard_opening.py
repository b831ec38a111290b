"""Opening a database: older formats come up in place, unknown ones are refused, damaged sums are derived anew."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from services.quorum.gtid import Gtid, GtidSet
from services.quorum.rows import HeadRow, Op
from services.shard import live_bits, opening, recount, schema
from services.shard.replica_state import read_state
from services.shard.rows_reader import RowsReader
from services.shard.rows_writer import RowsWriter
from services.shard.store import Database, StoreCorruptError
from tests.unit.shard_rows import DIM, SOURCE, passage, version
from tests.unit.test_shard_live_bits import assert_derived

APPLIED = GtidSet.of(*(Gtid(SOURCE, step) for step in range(1, 41)))


def filled(path: Path) -> Database:
    """Forty batches: thirty documents of two passages, some of them replaced or deleted."""
    database = Database(path, writable=True)
    opening.prepare(database, "r1")
    rows = RowsWriter(database, DIM)
    for step in range(1, 41):
        name, count = f"d{step % 30}", 0 if step % 7 == 0 else 2
        rows.begin(step)
        rows.put_passages([passage(name, ordinal, version(step)) for ordinal in range(count)])
        rows.put_head(HeadRow(name, count, version(step)))
        rows.put_op(Op(Gtid(SOURCE, step), version(step), (name,), bytes(16)))
        rows.put_state(GtidSet.of(Gtid(SOURCE, step)), version(step).hlc)
        rows.commit()
    return database


def as_format_1(database: Database) -> None:
    """What the first release wrote."""
    database.rows("DROP TABLE live")
    database.rows("ALTER TABLE ops DROP COLUMN content")
    database.rows("ALTER TABLE ops DROP COLUMN sum")
    database.rows("DELETE FROM meta WHERE k = 'state'")
    database.rows("INSERT INTO meta (k, v) VALUES ('hlc_max', ?)", (schema.to_sql(version(40).hlc),))
    database.rows("UPDATE meta SET v = 1 WHERE k = 'format'")


def test_a_database_of_format_1_is_brought_up_in_place(tmp_path: Path) -> None:
    database = filled(tmp_path / "replica.db")
    state, rows = read_state(database), live_bits.read(database)[0].rids().tolist()
    as_format_1(database)
    assert opening.prepare(database, "r1") == []
    assert database.first("SELECT v FROM meta WHERE k = 'format'") == (schema.FORMAT,)
    assert state is not None
    digest = recount.sums(RowsReader(database)).digest
    assert read_state(database) == replace(state, digest=digest), "what the batches said is not known"
    assert live_bits.read(database)[0].rids().tolist() == rows
    writer = RowsWriter(database, DIM)
    assert writer.applied() == (APPLIED, version(40).hlc)
    op = writer.op(Gtid(SOURCE, 7))
    assert op == Op(Gtid(SOURCE, 7), version(7), ("d7",)), "its content is not known"
    assert opening.prepare(database, "r1") == []
    assert_derived(writer)
    database.close()


def test_an_upgrade_that_fails_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    database = filled(tmp_path / "replica.db")
    as_format_1(database)
    before = database.rows("SELECT name, sql FROM sqlite_master ORDER BY name")

    def fail(*_: object) -> None:
        raise RuntimeError("power")

    monkeypatch.setattr(opening, "write_state", fail)
    with pytest.raises(RuntimeError, match="power"):
        opening.prepare(database, "r1")
    monkeypatch.undo()
    assert database.rows("SELECT name, sql FROM sqlite_master ORDER BY name") == before
    assert opening.prepare(database, "r1") == []
    database.close()


@pytest.mark.parametrize("stored", [3, 0, "two"])
def test_a_format_that_is_not_known_is_refused(tmp_path: Path, stored: int | str) -> None:
    database = filled(tmp_path / "replica.db")
    database.rows("UPDATE meta SET v = ? WHERE k = 'format'", (stored,))
    with pytest.raises(StoreCorruptError, match=f"format is {stored!r}, this version of Ostraka reads 1 to 2"):
        opening.prepare(database, "r1")
    database.close()


DAMAGES = {
    "state": ("UPDATE meta SET v = CAST(x'00' || substr(v, 2) AS BLOB) WHERE k = 'state'", "state record"),
    "state gone": ("DELETE FROM meta WHERE k = 'state'", "state record"),
    "chunk": ("UPDATE live SET bits = CAST(x'55' || substr(bits, 2) AS BLOB)", "1 chunks of live bits"),
    "chunk gone": ("DELETE FROM live", "0 rows are marked live"),
    "chunk moved": ("UPDATE live SET chunk = 3", "1 chunks of live bits"),
    "applied": ("UPDATE applied SET hi = hi + 4", "applied set"),
    "applied impossible": ("UPDATE applied SET hi = lo - 1", "applied set"),
    "applied text": ("UPDATE applied SET hi = 'x'", "applied set"),
    "applied gone": ("DELETE FROM applied", "applied set"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_derived_and_damaged_is_derived_anew(tmp_path: Path, damage: str) -> None:
    database = filled(tmp_path / "replica.db")
    state, rows = read_state(database), live_bits.read(database)[0].rids().tolist()
    statement, words = DAMAGES[damage]
    database.rows(statement)
    (found,) = opening.prepare(database, "r1")
    assert words in found
    assert read_state(database) == state
    assert live_bits.read(database)[0].rids().tolist() == rows
    assert RowsReader(database).applied() == (APPLIED, version(40).hlc)
    assert opening.prepare(database, "r1") == []
    database.close()


def test_a_batch_whose_operation_is_lost_too_is_not_claimed(tmp_path: Path) -> None:
    database = filled(tmp_path / "replica.db")
    database.rows("UPDATE ops SET documents = '[\"d9\"]' WHERE seq = ?", (schema.to_sql(12),))
    database.rows("UPDATE applied SET hi = hi + 1")
    assert opening.prepare(database, "r1")
    applied, _ = RowsReader(database).applied()
    assert applied == APPLIED.difference(GtidSet.of(Gtid(SOURCE, 12)))
    database.close()
