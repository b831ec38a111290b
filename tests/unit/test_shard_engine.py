"""One replica on disk: acknowledged means visible, restart, damage, a full disk, sealing."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from services.quorum.gtid import Gtid, GtidSet
from services.quorum.rows import PullBundle, WriteBatch
from services.quorum.status import ReplicaStatus
from services.shard import recount, sealing, search, segment
from services.shard.damage import DamagedRowError
from services.shard.engine import DATABASE_FILE, Engine, Hooks
from services.shard.rows_reader import RowsReader
from services.shard.rows_writer import RowsWriter
from services.shard.store import Database, StoreError, StoreFullError
from services.shard.upkeep import Upkeep
from services.shard.writer import WriteReply
from tests.unit.shard_rows import DIM, NOW_MS, SOURCE, FixedClock, batch, config, version

EPOCH = 1


class Replica:
    """An engine that can be closed and opened again."""

    def __init__(self, directory: Path, name: str = "r1") -> None:
        self.directory = directory / name
        self.directory.mkdir()
        self.name = name
        self.clock = FixedClock()
        self.fatal: list[str] = []
        self.settings = config()
        self.engine = self._open()

    def _open(self) -> Engine:
        hooks = Hooks(fatal=self.fatal.append)
        return Engine(self.directory, self.name, EPOCH, DIM, self.settings, self.clock, hooks)

    def restart(self) -> Engine:
        self.engine.close()
        self.engine = self._open()
        return self.engine

    def write(self, *batches: WriteBatch) -> list[ReplicaStatus]:
        return [reply.status for reply in self.replies(*batches)]

    def replies(self, *batches: WriteBatch) -> list[WriteReply]:
        futures = [self.engine.write(entry, EPOCH) for entry in batches]
        return [future.result(10) for future in futures if future is not None]

    def fill(self, documents: int, passages: int = 2, first: int = 1) -> None:
        """Documents d1, d2 ... one batch each."""
        statuses = self.write(*(batch(n, [(f"d{n}", passages)]) for n in range(first, first + documents)))
        assert statuses == [ReplicaStatus.OK] * documents

    def pulled(self, want: GtidSet) -> list[PullBundle]:
        with self.engine.readers.lend() as reader, reader.database.reading():
            return list(self.engine.core.pull(want, reader, 64))

    def ids(self, query: NDArray[np.float32], k: int, *, exact: bool = False) -> list[str]:
        task = search.SearchTask(query[None, :], k, exact, include_payload=False)
        (result,) = search.run(self.engine.view, self.engine.readers, task)
        return [f"{hit.document_id}#{hit.ordinal}" for hit in result.hits]

    def damage(self, document_id: str) -> None:
        """Flip a byte of the stored vector of the first passage."""
        database = Database(self.directory / DATABASE_FILE, writable=True)
        flipped = "CAST(x'00' || substr(vec, 2) AS BLOB)"
        database.rows(f"UPDATE passages SET vec = {flipped} WHERE document = ? AND ordinal = 0", (document_id,))
        database.close()


@pytest.fixture
def replica(tmp_path: Path) -> Iterator[Replica]:
    made = Replica(tmp_path)
    yield made
    made.engine.close()


def query_of(entry: WriteBatch, row: int = 0) -> NDArray[np.float32]:
    return np.frombuffer(entry.passages[row].vector, dtype="<f2").astype(np.float32)


def queries(count: int) -> NDArray[np.float32]:
    rows = np.random.default_rng(1).standard_normal((count, DIM)).astype(np.float32)
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), dtype=np.float32)


def test_what_was_acknowledged_is_found_by_the_next_search(replica: Replica) -> None:
    entry = batch(1, [("a", 3), ("b", 1)])
    assert replica.write(entry) == [ReplicaStatus.OK]
    view = replica.engine.view
    assert view.applied == GtidSet.of(entry.gtid)
    assert (view.rows_live, view.documents_live, view.hlc_max) == (4, 2, entry.version.hlc)
    assert replica.ids(query_of(entry, 1), 1) == ["a#1"]
    assert replica.write(entry) == [ReplicaStatus.OK], "a repeated batch changes nothing"
    assert replica.engine.view.rows_live == 4


def test_an_update_never_vanishes_from_a_search_under_way(replica: Replica) -> None:
    first, second = batch(1, [("a", 2)]), batch(2, [("a", 1)], seed=77)
    replica.write(first)
    before = replica.engine.view
    replica.write(second, batch(3, [("b", 1)]))
    task = search.SearchTask(query_of(first)[None, :], 5, exact=False, include_payload=True)
    (old,) = search.run(before, replica.engine.readers, task)
    assert [(hit.document_id, hit.version.hlc) for hit in old.hits] == [("a", version(1).hlc)] * 2
    (new,) = search.run(replica.engine.view, replica.engine.readers, task)
    assert {(hit.document_id, hit.version.hlc) for hit in new.hits} == {("a", version(2).hlc), ("b", version(3).hlc)}


def test_deletion_and_an_older_write_after_it(replica: Replica) -> None:
    replica.write(batch(2, [("a", 1)]), batch(5, [("a", 0)]))
    assert replica.write(batch(4, [("a", 2)])) == [ReplicaStatus.OK]
    assert replica.engine.view.rows_live == 0
    assert replica.engine.view.documents_live == 0
    with replica.engine.readers.lend() as reader:
        assert replica.engine.view.digest == recount.sums(reader).digest
    assert len(replica.engine.view.applied) == 3


def test_refusals_change_nothing(replica: Replica) -> None:
    needs = batch(2, [("a", 1)], depends=GtidSet.of(Gtid(SOURCE, 1)))
    old = replace(batch(3, [("a", 1)]), version=version(3))
    replica.clock.now_ms = NOW_MS + 120_000
    assert replica.write(old) == [ReplicaStatus.TOO_OLD]
    replica.clock.now_ms = NOW_MS - 60_000
    assert replica.write(old) == [ReplicaStatus.CLOCK_SKEW]
    replica.clock.now_ms = NOW_MS
    assert replica.write(needs) == [ReplicaStatus.MISSING_DEPENDENCY]
    future = replica.engine.write(old, EPOCH - 1)
    assert future is not None
    assert future.result(10).status is ReplicaStatus.STALE_EPOCH
    assert replica.engine.view.applied == GtidSet.EMPTY


def test_a_restart_rebuilds_the_same_view(replica: Replica) -> None:
    replica.fill(30)
    replica.write(batch(40, [("d3", 0)]), batch(41, [("d4", 1)]))
    before = replica.engine.view
    after = replica.restart().view
    assert (after.applied, after.hlc_max, after.digest) == (before.applied, before.hlc_max, before.digest)
    assert (after.rows_live, after.documents_live) == (before.rows_live, before.documents_live) == (57, 29)
    assert after.index_epoch == before.index_epoch


def test_the_delta_is_sealed_and_the_results_stay_the_same(replica: Replica) -> None:
    replica.fill(400)
    before = [replica.ids(query, 10, exact=True) for query in queries(10)]
    Upkeep(replica.engine).step(1)
    view = replica.engine.view
    assert (view.delta.live, len(view.parts), view.rows_live) == (0, 1, 800)
    assert view.parts[0].segment.manifest.factory == "IVF64,PQ4x4fs"
    assert [replica.ids(query, 10, exact=True) for query in queries(10)] == before
    again = replica.restart().view
    assert (again.delta.live, len(again.parts), again.index_epoch) == (0, 1, view.index_epoch)
    assert [replica.ids(query, 10, exact=True) for query in queries(10)] == before


def test_segments_of_like_size_are_merged_and_growth_retrains(replica: Replica) -> None:
    upkeep = Upkeep(replica.engine)
    kinds = []
    for round_ in range(5):
        replica.fill(400, first=1 + 400 * round_)
        upkeep.step(1)
        parts = replica.engine.view.parts
        kinds.append((len(parts), parts[0].segment.manifest.codec))
    assert [count for count, _ in kinds] == [1, 1, 1, 2, 1]
    assert kinds[1][1] == kinds[0][1], "a merge keeps the codec"
    assert kinds[2][1] != kinds[0][1], "three times the rows deserve a new codec"
    assert kinds[4][1] == kinds[2][1]
    directories = sorted(entry.name for entry in replica.engine.segments_dir.iterdir())
    assert directories == sorted(part.segment.name for part in replica.engine.view.parts)
    assert replica.engine.view.rows_live == 4000


def test_many_dead_rows_cause_a_rebuild(replica: Replica) -> None:
    replica.fill(800)
    upkeep = Upkeep(replica.engine)
    upkeep.step(1)
    replica.write(*(batch(1000 + n, [(f"d{n}", 0)]) for n in range(1, 200)))
    assert replica.engine.view.rows_dead == 398
    upkeep.step(1)
    assert (replica.engine.view.rows_dead, replica.engine.view.rows_live) == (0, 1202)


def test_a_write_during_a_build_is_in_the_published_view(replica: Replica) -> None:
    replica.fill(400)
    due = sealing.due(replica.engine.view, replica.engine.config)
    assert due is not None
    replica.write(batch(500, [("d1", 0)]), batch(501, [("new", 1)]))
    sealing.build_and_publish(replica.engine, due)
    view = replica.engine.view
    assert (view.rows_live, view.delta.live, view.parts[0].live) == (799, 1, 798)
    assert view.applied == replica.engine.core.applied


def test_a_damaged_segment_is_served_from_the_delta_and_rebuilt(replica: Replica) -> None:
    replica.fill(400)
    Upkeep(replica.engine).step(1)
    before = [replica.ids(query, 10, exact=True) for query in queries(5)]
    made = replica.engine.view.parts[0].segment
    path = made.directory / segment.VECTORS_FILE
    data = bytearray(path.read_bytes())
    data[-5] ^= 4
    path.write_bytes(data)
    view = replica.restart().view
    assert (view.delta.live, len(view.parts)) == (800, 0)
    assert [replica.ids(query, 10) for query in queries(5)] == before
    Upkeep(replica.engine).step(1)
    assert len(replica.engine.view.parts) == 1
    assert [replica.ids(query, 10, exact=True) for query in queries(5)] == before


@pytest.mark.parametrize("when", ["while open", "before a restart"])
def test_a_flipped_byte_is_reported_and_mended_from_a_peer(tmp_path: Path, when: str) -> None:
    mine, peer = Replica(tmp_path, "r1"), Replica(tmp_path, "r2")
    entry = batch(1, [("a", 2), ("b", 1)])
    for each in (mine, peer):
        assert each.write(entry) == [ReplicaStatus.OK]
    mine.damage("a")
    if when == "before a restart":
        mine.restart()
        assert [str(name) for name in mine.engine.damaged] == ["a#0"]
    else:
        with pytest.raises(DamagedRowError, match="a#0") as caught:
            mine.ids(query_of(entry), 3)
        mine.engine.note_damage(caught.value.names)
    with mine.engine.readers.lend() as reader:
        (name,) = mine.engine.damaged
        want = GtidSet.of(*reader.ops_of_version(name.version, name.document_id))
    assert want == GtidSet.of(entry.gtid)
    for bundle in peer.pulled(want):
        mine.engine.merge(bundle, mending=True).result(10)
    assert mine.engine.damaged == frozenset()
    assert mine.ids(query_of(entry), 1) == ["a#0"]
    assert mine.engine.view.rows_live == 3
    assert mine.engine.view.digest == peer.engine.view.digest
    mine.engine.close()
    peer.engine.close()


def test_pulled_state_makes_replicas_equal(tmp_path: Path) -> None:
    mine, peer = Replica(tmp_path, "r1"), Replica(tmp_path, "r2")
    peer.fill(20)
    peer.write(batch(30, [("d1", 0)]), batch(31, [("d2", 3)]))
    mine.fill(5, first=50)
    for _ in range(2):
        for bundle in peer.pulled(mine.engine.core.missing(peer.engine.view.applied) or peer.engine.view.applied):
            mine.engine.merge(bundle).result(10)
    for bundle in mine.pulled(peer.engine.core.missing(mine.engine.view.applied)):
        peer.engine.merge(bundle).result(10)
    ours, theirs = mine.engine.view, peer.engine.view
    assert (ours.applied, ours.digest, ours.rows_live) == (theirs.applied, theirs.digest, theirs.rows_live)
    assert ours.index_epoch == theirs.index_epoch
    for query in queries(5):
        assert mine.ids(query, 10) == peer.ids(query, 10)
    mine.engine.close()
    peer.engine.close()


def test_a_full_disk_makes_the_replica_read_only_until_there_is_space(replica: Replica) -> None:
    replica.fill(10)
    before = replica.engine.view
    limit = replica.engine._database.rows("PRAGMA page_count")[0][0]
    replica.engine._database.rows(f"PRAGMA max_page_count={limit}")
    (reply,) = replica.replies(batch(100, [(f"big{n}", 20) for n in range(10)]))
    assert reply.status is ReplicaStatus.READ_ONLY
    assert "full" in reply.message
    assert replica.engine.read_only
    assert replica.engine.view is before, "nothing changed, and searches go on"
    assert replica.ids(queries(1)[0], 3)
    merging = replica.engine.merge(_bundle(batch(101, [(f"big{n}", 20) for n in range(10)])))
    with pytest.raises(StoreFullError):
        merging.result(10)
    replica.engine._database.rows("PRAGMA max_page_count=1000000")
    Upkeep(replica.engine).step(1)
    assert not replica.engine.read_only
    assert replica.write(batch(100, [(f"big{n}", 20) for n in range(10)])) == [ReplicaStatus.OK]


def test_the_disk_reserve_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replica = Replica(tmp_path)
    replica.engine.config = config(disk_reserve_bytes=1 << 60)
    (reply,) = replica.replies(batch(1, [("a", 1)]))
    assert reply.status is ReplicaStatus.READ_ONLY
    assert "disk_reserve_bytes" in reply.message
    replica.engine.config = config()
    assert replica.write(batch(1, [("a", 1)])) == [ReplicaStatus.OK]
    assert not replica.engine.read_only
    replica.engine.close()


def test_superseded_rows_stay_for_running_searches_and_go_later(replica: Replica) -> None:
    replica.write(batch(1, [("a", 2)]), batch(2, [("a", 1)]))
    assert replica.engine.purge().result(10) == 0
    replica.clock.now_ms += replica.engine.config.superseded_keep_ms + 1
    assert replica.engine.purge().result(10) == 2
    with replica.engine.readers.lend() as reader:
        assert len(reader.live_passages("a")) == 1


def test_background_work_can_see_that_something_is_being_written(replica: Replica) -> None:
    begun, released = threading.Event(), threading.Event()

    def work(_: RowsWriter) -> None:
        begun.set()
        released.wait(10)

    written = replica.engine.maintain(work)
    assert begun.wait(10)
    assert not replica.engine.await_writer(0)
    released.set()
    written.result(10)
    assert replica.engine.await_writer(10)


def test_the_write_queue_is_bounded(replica: Replica) -> None:
    replica.engine.close()
    replica.settings = config(write_queue_max=1)
    replica.engine = replica._open()
    futures = [replica.engine.write(batch(n, [(f"d{n}", 50)]), EPOCH) for n in range(1, 40)]
    assert any(future is None for future in futures), "refused at once instead of waiting"
    assert all(future.result(10).status is ReplicaStatus.OK for future in futures if future is not None)


def test_a_corrupt_database_fails_the_replica(tmp_path: Path) -> None:
    replica = Replica(tmp_path)
    replica.fill(50)
    replica.engine.checkpoint()
    path = replica.directory / DATABASE_FILE
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 4096 * 8)
    replica.engine.close()
    with pytest.raises(StoreError, match=r"replica\.db"):
        replica._open()


def _bundle(entry: WriteBatch) -> PullBundle:
    return PullBundle(GtidSet.of(entry.gtid), (), entry.passages, (), entry.version.hlc)


def test_readers_never_see_a_part_of_a_commit(replica: Replica) -> None:
    replica.fill(3)
    reader = RowsReader(Database(replica.engine.database_path, writable=False))
    with reader.database.reading():
        first = reader.applied()
        replica.fill(3, first=10)
        assert reader.applied() == first
    assert reader.applied() != first
    reader.database.close()
