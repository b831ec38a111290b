"""SQLite rows: what a commit changes in the view, checksums, order of unsigned numbers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.quorum.gtid import Gtid, GtidSet
from services.quorum.rows import HeadRow, Op
from services.shard import opening, recount, schema
from services.shard.damage import DamagedRowError
from services.shard.readers import Readers
from services.shard.replica_state import read_epoch
from services.shard.rows_reader import RowsReader
from services.shard.rows_writer import RowsWriter
from services.shard.store import Database, StoreCorruptError, StoreError, StoreFullError
from tests.unit.shard_rows import DIM, SOURCE, passage, version

U64 = st.integers(0, (1 << 64) - 1)


@pytest.fixture
def rows(tmp_path: Path) -> Iterator[RowsWriter]:
    database = Database(tmp_path / "replica.db", writable=True)
    opening.prepare(database, "r1")
    yield RowsWriter(database, DIM)
    database.close()


def put(rows: RowsWriter, step: int, document_id: str, count: int) -> tuple[int, int]:
    """Write one document; (rids that died, rids that were born)."""
    at = version(step)
    rows.begin(step)
    rows.put_passages([passage(document_id, ordinal, at) for ordinal in range(count)])
    rows.put_head(HeadRow(document_id, count, at))
    changed = rows.commit()
    return len(changed.dead), len(changed.born)


def test_replacing_and_deleting_a_document_moves_rows_out_of_and_into_the_view(rows: RowsWriter) -> None:
    assert put(rows, 1, "a", 3) == (0, 3)
    assert put(rows, 2, "a", 2) == (3, 2)
    assert put(rows, 3, "a", 0) == (2, 0)
    assert recount.live_rids(rows.database).tolist() == []
    assert rows.head("a") == HeadRow("a", 0, version(3))
    assert rows.purge_superseded(3) == 3
    assert rows.purge_superseded(4) == 2


def test_staged_passages_become_live_with_their_head(rows: RowsWriter) -> None:
    put(rows, 1, "a", 2)
    rows.begin(2)
    rows.put_passages([passage("a", ordinal, version(2)) for ordinal in range(4)])
    rows.put_op(Op(Gtid(SOURCE, 2), version(2), ("a",)))
    staged = rows.commit()
    assert (len(staged.dead), len(staged.born)) == (0, 0)
    op = rows.op(Gtid(SOURCE, 2))
    assert op is not None
    assert [row.ordinal for row in rows.staged_passages(op)] == [0, 1, 2, 3]
    rows.begin(3)
    rows.put_head(HeadRow("a", 4, version(2)))
    changed = rows.commit()
    assert (len(changed.dead), len(changed.born)) == (2, 4)
    assert changed.vectors.shape == (4, DIM)
    assert rows.staged_passages(op) == []
    assert [row.ordinal for row in rows.live_passages("a")] == [0, 1, 2, 3]


def test_rows_written_twice_are_kept_once(rows: RowsWriter) -> None:
    put(rows, 1, "a", 3)
    assert put(rows, 1, "a", 3) == (0, 0)


def test_the_digest_depends_on_the_state_and_not_on_the_way_to_it(tmp_path: Path) -> None:
    sums = []
    for name, order in (("one", [1, 2, 3]), ("two", [2, 1, 3])):
        database = Database(tmp_path / f"{name}.db", writable=True)
        opening.prepare(database, name)
        writer, total, documents = RowsWriter(database, DIM), 0, 0
        for step in order:
            writer.begin(step)
            writer.put_head(HeadRow(f"d{step}", 1, version(step)))
            if step == 3:
                writer.put_head(HeadRow("d1", 0, version(3)))
            change = writer.commit()
            total += change.digest
            documents += change.documents
        sums.append((total % (1 << 128), documents))
        database.close()
    assert sums[0] == sums[1]
    assert sums[0][1] == 2


def test_a_rolled_back_transaction_changes_nothing(rows: RowsWriter) -> None:
    put(rows, 1, "a", 1)
    rows.begin(2)
    rows.put_head(HeadRow("a", 0, version(2)))
    rows.put_state(GtidSet.of(Gtid(SOURCE, 2)), 7)
    rows.rollback()
    assert rows.applied() == (GtidSet.EMPTY, 0)
    assert put(rows, 3, "b", 1) == (0, 1)
    assert len(recount.live_rids(rows.database).tolist()) == 2


def test_the_applied_set_is_stored_as_intervals(rows: RowsWriter) -> None:
    for gtids in ([1, 2, 5], [3, 4], [(1 << 62)]):
        rows.begin(1)
        rows.put_state(GtidSet.of(*(Gtid(SOURCE, seq) for seq in gtids)), 9)
        rows.commit()
    applied, hlc_max = rows.applied()
    assert dict(applied.intervals()) == {SOURCE: ((1, 5), (1 << 62, 1 << 62))}
    assert hlc_max == 9
    assert len(rows.database.rows("SELECT * FROM applied")) == 2


@given(U64, U64)
def test_unsigned_numbers_keep_their_order_in_sql(a: int, b: int) -> None:
    assert schema.from_sql(schema.to_sql(a)) == a
    assert -(1 << 63) <= schema.to_sql(a) < 1 << 63
    assert (schema.to_sql(a) < schema.to_sql(b)) == (a < b)


@pytest.mark.parametrize("column", ["vec", "payload"])
def test_a_flipped_byte_is_never_served_and_a_good_row_takes_its_place(rows: RowsWriter, column: str) -> None:
    put(rows, 1, "a", 2)
    rid = recount.live_rids(rows.database).tolist()[0]
    rows.database.rows(
        f"UPDATE passages SET {column} = CAST(x'00' || substr({column}, 2) AS BLOB) WHERE rid = ?", (rid,)
    )
    with pytest.raises(DamagedRowError, match="a#0"):
        rows.live_passages("a")
    with pytest.raises(DamagedRowError, match="a#0"):
        rows.by_rid([rid, rid + 1])
    rows.begin(2)
    rows.put_passages([passage("a", 0, version(1))])
    change = rows.commit()
    assert change.dead.tolist() == [rid]
    assert len(change.born) == 1
    assert [row.ordinal for row in rows.live_passages("a")] == [0, 1]


def test_a_damaged_head_is_refused_except_while_mending(rows: RowsWriter) -> None:
    put(rows, 1, "a", 2)
    rows.database.rows("UPDATE heads SET n = 1 WHERE document = 'a'")
    with pytest.raises(DamagedRowError, match="head of a"):
        rows.head("a")
    rows.begin(2, mending=True)
    assert rows.head("a") is None
    rows.put_head(HeadRow("a", 2, version(1)))
    rows.commit()
    assert rows.head("a") == HeadRow("a", 2, version(1))


def test_readers_are_lent_and_see_only_commits(rows: RowsWriter) -> None:
    readers = Readers(rows.database.path, kept=1)
    rows.begin(1)
    rows.put_head(HeadRow("a", 1, version(1)))
    with readers.lend() as one, readers.lend() as two:
        assert one is not two
        assert one.head("a") is None
        rows.commit()
        assert two.head("a") is not None
    with readers.lend() as again:
        assert again in (one, two)
    readers.close()


def test_a_full_file_is_told_apart_from_a_broken_one(tmp_path: Path, rows: RowsWriter) -> None:
    rows.database.rows("PRAGMA max_page_count=1")
    rows.begin(1)
    with pytest.raises(StoreFullError):
        rows.put_passages([passage(f"d{n}", 0, version(1)) for n in range(200)])
    rows.rollback()
    broken = tmp_path / "broken.db"
    broken.write_bytes(b"no database" * 1000)
    with pytest.raises(StoreCorruptError):
        RowsReader(Database(broken, writable=False)).applied()


def test_a_database_of_another_replica_is_refused(rows: RowsWriter) -> None:
    with pytest.raises(StoreCorruptError, match="replica_id"):
        opening.prepare(rows.database, "r2")


def test_a_fence_is_remembered_with_its_transaction_alone(rows: RowsWriter) -> None:
    assert read_epoch(rows.database) == (0, False)
    rows.begin(1)
    rows.put_epoch(2, True)
    rows.rollback()
    assert read_epoch(rows.database) == (0, False)
    rows.begin(1)
    rows.put_epoch(2, True)
    rows.commit()
    assert read_epoch(rows.database) == (2, True)
    rows.database.rows("UPDATE meta SET v = zeroblob(17) WHERE k = 'epoch'")
    with pytest.raises(StoreError, match="replace this replica under a new id"):
        read_epoch(rows.database)
