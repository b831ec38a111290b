"""The scrub finds each kind of flipped bit, what is damaged is never served, and the replica comes back whole."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from services.quorum.gtid import Gtid, GtidSet
from services.shard import chunk_check, live_bits, recount, scrub, search
from services.shard.damage import DamagedRowError, PartDamagedError
from services.shard.engine import DATABASE_FILE
from services.shard.replica_state import read_state
from services.shard.rows_reader import RowsReader
from services.shard.scrub import Scrub
from services.shard.segment import MANIFEST_FILE
from services.shard.store import Database, StoreCorruptError, StoreError
from services.shard.upkeep import Upkeep
from tests.unit.shard_rows import batch
from tests.unit.test_shard_engine import Replica, queries

DOCUMENTS = 400


class Pair:
    """A replica to be damaged and its peer."""

    def __init__(self, directory: Path) -> None:
        self.mine, self.peer = Replica(directory, "r1"), Replica(directory, "r2")
        for each in (self.mine, self.peer):
            each.fill(DOCUMENTS)
            each.write(batch(900, [("d7", 0)]), batch(901, [("d8", 1)]))
        Upkeep(self.mine.engine).step(1)
        assert len(self.mine.engine.view.parts) == 1
        self.mine.write(batch(902, [("late", 2)]))
        self.peer.write(batch(902, [("late", 2)]))
        self.scrub = Scrub(self.mine.engine)
        self.before = self.results()

    def results(self) -> list[list[str]]:
        return [self.mine.ids(query, 10, exact=True) for query in queries(8)]

    def sql(self, statement: str, *parameters: int) -> None:
        database = Database(self.mine.directory / DATABASE_FILE, writable=True)
        database.rows(statement, parameters)
        assert database.changed(), statement
        database.close()

    def mend(self) -> None:
        """What `Repair` does with a peer."""
        engine = self.mine.engine
        for name in engine.damaged:
            with engine.readers.lend() as reader:
                written = reader.ops_of_document(name.document_id)
            for bundle in self.peer.pulled(GtidSet.of(*written)):
                engine.merge(bundle, mending=True).result(10)
        for bundle in self.peer.pulled(engine.ledger.ops):
            engine.merge(bundle, mending=True).result(10)

    def close(self) -> None:
        self.mine.engine.close()
        self.peer.engine.close()


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    made = Pair(tmp_path)
    yield made
    made.close()


def assert_whole(pair: Pair) -> None:
    """Nothing is damaged, results are those from before, and so it is after a restart."""
    mine, peer = pair.mine.engine, pair.peer.engine
    found = pair.scrub.reading().damage_found
    pair.scrub.run_once()
    assert pair.scrub.reading().damage_found == found, "a second check finds nothing more"
    assert (mine.damaged, mine.ledger.parts, mine.ledger.ops) == (frozenset(), frozenset(), GtidSet.EMPTY)
    assert pair.results() == pair.before
    for view in (mine.view, pair.mine.restart().view):
        assert (view.applied, view.digest, view.rows_live) == (
            peer.view.applied,
            peer.view.digest,
            peer.view.rows_live,
        )
        assert view.documents_live == peer.view.documents_live
    assert pair.mine.engine.ledger.found == 0
    assert pair.results() == pair.before


FLIP = "CAST(x'{}' || substr({}, 2) AS BLOB)"
ROWS = {
    "payload": f"UPDATE passages SET payload = {FLIP.format('ff', 'payload')} WHERE document = 'd5' AND ordinal = 1",
    "vector": f"UPDATE passages SET vec = {FLIP.format('ff', 'vec')} WHERE document = 'd5' AND ordinal = 1",
    "checksum": f"UPDATE passages SET sum = {FLIP.format('ff', 'sum')} WHERE document = 'd5' AND ordinal = 1",
    "vector of a delta row": f"UPDATE passages SET vec = {FLIP.format('ff', 'vec')} WHERE document = 'late'",
    "type of a payload": "UPDATE passages SET payload = 'text' WHERE document = 'd5'",
    "ordinal": "UPDATE passages SET ordinal = 40 WHERE document = 'd5' AND ordinal = 1",
    "version": "UPDATE passages SET hlc = hlc + 4 WHERE document = 'd5' AND ordinal = 1",
    "document": "UPDATE passages SET document = 'x' WHERE document = 'd5' AND ordinal = 1",
    "document that is not UTF-8": "UPDATE passages SET document = CAST(x'ee31' AS TEXT) WHERE document = 'd5'",
    "row gone": "DELETE FROM passages WHERE document = 'd5' AND ordinal = 1",
    "count of a head": "UPDATE heads SET n = 1 WHERE document = 'd5'",
    "version of a head": "UPDATE heads SET hlc = hlc + 64 WHERE document = 'd5'",
    "head of a tombstone": "UPDATE heads SET n = 2 WHERE document = 'd7'",
}


@pytest.mark.parametrize("kind", ROWS)
def test_a_damaged_row_is_found_and_fetched_from_a_peer(pair: Pair, kind: str) -> None:
    pair.sql(ROWS[kind])
    pair.scrub.run_once()
    assert pair.mine.engine.damaged
    assert pair.scrub.reading().damage_found
    for step in range(3):
        pair.mend()
        if step:  # a row that lost its name is missed only when another check counts what heads declare
            pair.scrub.run_once()
    assert_whole(pair)


DERIVED = {
    "live bits": f"UPDATE live SET bits = {FLIP.format('00', 'bits')}",
    "live chunk gone": "DELETE FROM live",
    "state record": f"UPDATE meta SET v = {FLIP.format('ff', 'v')} WHERE k = 'state'",
    "applied set": "UPDATE applied SET hi = hi + 5",
    "superseded mark": "UPDATE passages SET superseded_ms = 1 WHERE document = 'd5'",
}


@pytest.mark.parametrize("kind", DERIVED)
def test_what_is_derived_from_rows_is_derived_anew(pair: Pair, kind: str) -> None:
    pair.sql(DERIVED[kind])
    pair.scrub.run_once()
    pair.mine.engine.purge().result(10)
    assert pair.mine.engine.damaged == frozenset()
    assert pair.scrub.reading().damage_found == (kind != "superseded mark")
    assert_whole(pair)
    reader = RowsReader(Database(pair.mine.engine.database_path, writable=False))
    bits, damaged = live_bits.read(reader.database)
    state = read_state(reader.database)
    assert damaged == []
    assert bits.rids().tolist() == recount.live_rids(reader.database).tolist()
    assert state is not None
    assert (state.digest, state.rows) == (pair.mine.engine.view.digest, bits.count)
    reader.database.close()


@pytest.mark.parametrize("change", ["documents = '[\"d9\"]'", "hlc = hlc + 1", "seq = seq + 100000", "content = x'00'"])
def test_a_damaged_operation_is_fetched_from_a_peer(pair: Pair, change: str) -> None:
    pair.sql(f"UPDATE ops SET {change} WHERE documents = '[\"d5\"]'")
    pair.scrub.run_once()
    (lost,) = pair.mine.engine.ledger.ops
    assert not pair.mine.pulled(GtidSet.of(lost)), "it is not passed on as something else"
    pair.mend()
    with pair.mine.engine.readers.lend() as reader, pair.peer.engine.readers.lend() as theirs:
        assert reader.op(lost) == theirs.op(lost)
    assert_whole(pair)


def files_of(pair: Pair) -> list[Path]:
    part = pair.mine.engine.view.parts[0].segment
    return [part.directory / name for name in (*sorted(part.manifest.sha256), MANIFEST_FILE)]


def flip(path: Path, place: int) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)
        file.seek(place)
        file.write(bytes([byte[0] ^ 4]))


@pytest.mark.parametrize("seed", range(2))
def test_a_flipped_bit_in_any_file_of_a_segment_is_found_and_its_rows_are_served(pair: Pair, seed: int) -> None:
    random = np.random.default_rng(seed)
    for name in [path.name for path in files_of(pair) if path.stat().st_size]:
        path = pair.mine.engine.view.parts[0].segment.directory / name
        flip(path, int(random.integers(path.stat().st_size)))
        pair.scrub.run_once()
        assert pair.mine.engine.view.parts == (), name
        assert pair.results() == pair.before
        assert not any(pair.mine.engine.segments_dir.iterdir())
        Upkeep(pair.mine.engine).step(1)
        assert len(pair.mine.engine.view.parts) == 1
    pair.before = pair.results()


def test_a_search_serves_no_score_of_a_flipped_vector(pair: Pair) -> None:
    """Between two checks, the file that scores come from is held against the rows that are served."""
    part = pair.mine.engine.view.parts[0]
    task = search.SearchTask(queries(8), 10, exact=True, include_payload=True)
    vectors = max(files_of(pair), key=lambda path: path.stat().st_size if "vec" in path.name else 0)
    size = vectors.stat().st_size
    for place in range(size - 2 * part.segment.rows * pair.mine.engine.dim + 1, size, 2):
        flip(vectors, place)
    with pytest.raises(PartDamagedError, match=part.segment.name):
        search.run(pair.mine.engine.view, pair.mine.engine.readers, task)
    pair.mine.engine.ledger.add_part(part.segment.name, "as the service notes it")
    pair.scrub.discard_damaged()
    assert pair.mine.engine.view.parts == ()
    assert pair.results() == pair.before


def test_a_search_serves_no_damaged_row(pair: Pair) -> None:
    pair.sql(ROWS["vector"].replace("ordinal = 1", "ordinal < 9"))
    task = search.SearchTask(queries(1), DOCUMENTS * 2, exact=True, include_payload=True)
    with pytest.raises(DamagedRowError, match="d5"):
        search.run(pair.mine.engine.view, pair.mine.engine.readers, task)


def test_writes_during_a_check_disturb_nothing(pair: Pair) -> None:
    for number in range(1, 40):
        pair.scrub.step()
        entry = batch(1_000 + number, [(f"d{number}", number % 3)])
        pair.mine.write(entry)
        pair.peer.write(entry)
    assert pair.scrub.reading().damage_found == 0
    pair.before = pair.results()
    assert_whole(pair)


def test_a_check_is_due_at_once_then_after_its_interval_or_when_something_cannot_be_named(pair: Pair) -> None:
    def complete() -> int:
        steps = 0
        while pair.scrub.step():
            steps += 1
        return steps

    assert pair.scrub.reading().age_ms is None
    assert complete() > 4
    assert complete() == 0
    pair.mine.clock.now_ms += 1_000
    assert pair.scrub.reading().age_ms == 1_000
    pair.mine.engine.ledger.doubt()
    assert complete() > 4
    pair.mine.clock.now_ms += 1_000 * pair.mine.engine.config.scrub_interval_s
    assert complete() > 4


def test_a_row_whose_name_is_damaged_asks_for_a_check(pair: Pair) -> None:
    pair.sql(ROWS["document"])
    task = search.SearchTask(queries(1), DOCUMENTS * 2, exact=True, include_payload=True)
    with pytest.raises(DamagedRowError, match="x#1") as caught:
        search.run(pair.mine.engine.view, pair.mine.engine.readers, task)
    pair.mine.engine.note_damage(caught.value.names)
    pair.mine.engine.recheck().result(10)
    assert pair.mine.engine.damaged == frozenset(), "x is not a live document"


def test_broken_pages_fail_the_replica(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scrub, "_QUICK_CHECK", "SELECT 'Tree 3 page 7: btreeInitPage() returns error code 11'")
    with pytest.raises(StoreCorruptError, match="btreeInitPage"):
        pair.scrub.run_once()


def test_errors_of_the_store_end_the_check_and_it_begins_anew(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise StoreError("once")

    pair.scrub.step()
    monkeypatch.setattr(chunk_check, "check", fail)
    with pytest.raises(StoreError, match="once"):
        pair.scrub.step()
    monkeypatch.undo()
    assert_whole(pair)
    assert Gtid(1, 1) not in pair.mine.engine.view.applied


def test_a_segment_that_was_merged_during_a_check_is_not_damaged(pair: Pair) -> None:
    engine, merged = pair.mine.engine, 0
    for position in range(16):
        engine.ledger.doubt()
        for _ in range(position):
            pair.scrub.step()
        names = {part.segment.name for part in engine.view.parts}
        pair.mine.fill(DOCUMENTS, first=1_000 * (position + 1))
        Upkeep(engine).step(1)
        merged += bool(names - {part.segment.name for part in engine.view.parts})
        while pair.scrub.step():
            continue
        assert pair.scrub.reading().damage_found == 0
    assert merged > 4


def test_a_check_gives_way_within_its_pieces(pair: Pair) -> None:
    pauses: list[int] = []
    checking = Scrub(pair.mine.engine, lambda: pauses.append(checking.reading().pieces))
    checking.run_once()
    rows = DOCUMENTS * 2  # of one chunk: each is held against its head, and then against the metadata index
    assert max(pauses.count(piece) for piece in pauses) >= 2 * (rows // chunk_check.PAUSE_ROWS)
