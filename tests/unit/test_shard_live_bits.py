"""Live bits say what a join of passages and heads would say, after whatever was committed, also across a restart."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.quorum.rows import HeadRow
from services.shard import live_bits, opening, recount
from services.shard.live_bits import CHUNK_ROWS, LiveBits, LiveBitsWriter
from services.shard.replica_state import ReplicaState, read_state
from services.shard.rows_writer import RowsWriter
from services.shard.store import Database
from tests.unit.shard_rows import DIM, passage, version

RIDS = st.integers(0, 5 * CHUNK_ROWS)


def bits_of(rids: Sequence[int]) -> LiveBits:
    found = np.array(sorted(rids), dtype=np.int64)
    chunks = sorted(set((found // CHUNK_ROWS).tolist()))
    return LiveBits.of({chunk: live_bits.packed(found[found // CHUNK_ROWS == chunk] % CHUNK_ROWS) for chunk in chunks})


@given(st.sets(RIDS), st.lists(RIDS), st.sets(RIDS))
def test_many_rids_are_looked_up_at_once(live: set[int], asked: list[int], covered: set[int]) -> None:
    bits = bits_of(sorted(live))
    assert bits.count == len(live)
    assert bits.rids().tolist() == sorted(live)
    assert bits.alive(np.array(asked, dtype=np.int64)).tolist() == [rid in live for rid in asked]
    assert bits.without(np.array(sorted(covered), dtype=np.int64)).tolist() == sorted(live - covered)


def database_in(directory: Path) -> Database:
    database = Database(directory / "replica.db", writable=True)
    assert opening.prepare(database, "r1") == []
    return database


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.tuples(RIDS, st.booleans()), max_size=8), max_size=8))
def test_the_writer_keeps_table_and_count(commits: list[list[tuple[int, bool]]]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        database = database_in(Path(directory))
        writer, count = LiveBitsWriter(database), 0
        live: set[int] = set()
        for number, commit in enumerate(commits):
            database.begin()
            after = live | {rid for rid, born in commit if born}
            after -= {rid for rid, born in commit if not born}
            grown = writer.change([rid for rid, born in commit if born], [rid for rid, born in commit if not born])
            if number % 3 == 2:
                database.rollback()
                writer.rolled_back()
                continue
            database.commit()
            writer.committed()
            live, count = after, count + grown
            assert count == len(live)
            assert all(writer.is_live(rid) == (rid in live) for rid, _ in commit)
            stored, damaged = live_bits.read(database)
            assert (stored.rids().tolist(), damaged) == (sorted(live), [])
        database.close()


STEPS = st.tuples(
    st.sampled_from(["a", "b", "c", "d"]),
    st.integers(0, 3),
    st.sampled_from(["commit", "roll back", "passages only", "purge", "reopen"]),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(STEPS, max_size=14))
def test_bits_equal_a_join_after_any_commits(steps: list[tuple[str, int, str]]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        database = database_in(Path(directory))
        rows = RowsWriter(database, DIM)
        for number, (document_id, count, what) in enumerate(steps, start=1):
            at = version(number)
            if what == "reopen":
                database.close()
                database = database_in(Path(directory))
                rows = RowsWriter(database, DIM)
            rows.begin(number)
            if what == "purge":
                rows.purge_superseded(number)
            rows.put_passages([passage(document_id, ordinal, at) for ordinal in range(count)])
            if what != "passages only":
                rows.put_head(HeadRow(document_id, count, at))
            if what == "roll back":
                rows.rollback()
            else:
                rows.commit()
            assert_derived(rows)
        database.close()


def assert_derived(rows: RowsWriter) -> None:
    """Everything stored about all rows is what the rows say."""
    stored, damaged = live_bits.read(rows.database)
    joined = recount.live_rids(rows.database)
    sums = recount.sums(rows)
    applied, hlc_max = rows.applied()
    assert damaged == []
    assert stored.rids().tolist() == joined.tolist()
    wanted = ReplicaState(sums.digest, sums.documents, len(joined), hlc_max, applied.digest())
    assert read_state(rows.database) == wanted


def test_a_damaged_chunk_is_derived_anew_by_the_writer(tmp_path: Path) -> None:
    database = database_in(tmp_path)
    rows = RowsWriter(database, DIM)
    rows.begin(1)
    rows.put_passages([passage("a", ordinal, version(1)) for ordinal in range(3)])
    rows.put_head(HeadRow("a", 3, version(1)))
    rows.commit()
    database.rows("UPDATE live SET bits = zeroblob(1024)")
    again = RowsWriter(database, DIM)
    again.begin(2)
    again.put_head(HeadRow("b", 0, version(2)))
    again.put_passages([passage("b", 0, version(2))])
    again.put_passages([passage("c", 0, version(2))])
    again.put_head(HeadRow("c", 1, version(2)))
    again.commit()
    stored, damaged = live_bits.read(database)
    assert damaged == []
    assert stored.rids().tolist() == recount.live_rids(database).tolist()
    database.close()


def test_a_purge_spares_a_live_row_whatever_its_mark_says(tmp_path: Path) -> None:
    database = database_in(tmp_path)
    rows = RowsWriter(database, DIM)
    rows.begin(1)
    rows.put_passages([passage("a", ordinal, version(1)) for ordinal in range(2)])
    rows.put_head(HeadRow("a", 2, version(1)))
    rows.commit()
    database.rows("UPDATE passages SET superseded_ms = 1")
    rows.begin(10)
    assert rows.purge_superseded(5) == 0
    rows.commit()
    assert len(rows.live_passages("a")) == 2
    database.close()


@pytest.mark.parametrize("flipped", [0, 20, 47, 52])
def test_a_state_record_with_a_flipped_bit_is_none(flipped: int) -> None:
    data = bytearray(ReplicaState(7, 1, 2, 3, b"12345678").to_bytes())
    assert ReplicaState.from_bytes(bytes(data)) == ReplicaState(7, 1, 2, 3, b"12345678")
    data[flipped] ^= 1
    assert ReplicaState.from_bytes(bytes(data)) is None
