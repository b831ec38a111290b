"""When segments are built and merged, under which budget, and that searches never notice."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from services.quorum.gtid import GtidSet
from services.shard import faiss_index, scoring, sealing, view_search
from services.shard.codecs import Codec, CodecRecord
from services.shard.cpu_budget import BURST_S, GIVE_WAY_S, CpuBudget, StoppedError
from services.shard.delta import Delta
from services.shard.engine import Engine
from services.shard.sealing import Shared, due
from services.shard.segment import FLAT, VECTORS_FILE, Segment, SegmentDamagedError
from services.shard.view import View
from tests.unit.shard_rows import DIM, FixedClock, batch, config
from tests.unit.test_shard_view import change, unit_query, unit_rows

FLUSH = 20


def _segment(name: str, rids: NDArray[np.int64], codec: str, view_rows: int) -> Segment:
    """What the policy looks at, without files."""
    manifest = SimpleNamespace(
        name=name,
        rows=len(rids),
        codec=codec,
        flat=codec == FLAT,
        factory=codec,
        trained_rows_basis=1_000_000,
        view_rows=view_rows,
    )
    order = np.argsort(rids).astype(np.int64)
    nothing: Any = None
    return Segment(cast("Any", manifest), Path(name), nothing, nothing, rids, order, nothing)


def _empty() -> View:
    return View(0, GtidSet.EMPTY, 0, (), Delta.empty(2), 0, 0, "flat-0")


def _published(view: View, found: sealing.Sealing, number: int) -> View:
    if not len(found.rids):
        for name in found.replaced:
            view = view.without_part(name)
        return view
    made = _segment(f"s{number}", found.rids, found.codec, view.rows_live)
    return view.sealed(made, frozenset(found.replaced))


@given(
    st.lists(st.tuples(st.integers(0, 60), st.integers(0, 30), st.booleans()), min_size=1, max_size=60), st.randoms()
)
@settings(max_examples=60, deadline=None)
def test_segments_stay_few_and_work_ends(steps: list[tuple[int, int, bool]], chance: random.Random) -> None:
    view, codec, next_rid, number, written = _empty(), FLAT, 1, 0, 0
    limits = config(delta_rows_flush=FLUSH)
    for born, dying, trained in steps:
        live = view.live_rids().tolist()
        dead = chance.sample(live, min(dying, len(live)))
        rids = list(range(next_rid, next_rid + born))
        next_rid += born
        view = view.committed(GtidSet.EMPTY, 0, change(dead, rids, np.zeros((born, 2), dtype=np.float16)))
        codec = f"c{number}" if trained else codec
        expected = view.live_rids().tolist()
        rounds = 0
        while (found := due(view, limits, Shared(codec))) is not None:
            number, rounds = number + 1, rounds + 1
            written += len(found.rids)
            view = _published(view, found, number)
            assert rounds <= 3 * sealing.SEGMENTS_MAX, "work ends"
        assert view.live_rids().tolist() == expected
        assert len(view.parts) <= sealing.SEGMENTS_MAX
        assert view.delta.live < FLUSH
        assert all(part.dead <= sealing.DEAD_SHARE_MAX * part.segment.rows for part in view.parts)
        assert codec == FLAT or {part.segment.manifest.codec for part in view.parts} <= {codec}
        if codec != FLAT:
            company = [part.segment.manifest.view_rows / max(view.rows_live, part.segment.rows) for part in view.parts]
            assert max(company, default=0) <= sealing.LONELY, "settings were chosen among about so many rows"


def test_a_row_is_written_a_few_times_however_many_come() -> None:
    view, written, flushes = _empty(), 0, 500
    for number in range(flushes):
        rids = list(range(1 + number * FLUSH, 1 + (number + 1) * FLUSH))
        view = view.committed(GtidSet.EMPTY, 0, change([], rids, np.zeros((FLUSH, 2), dtype=np.float16)))
        while (found := due(view, config(delta_rows_flush=FLUSH), Shared("c"))) is not None:
            written += len(found.rids)
            view = _published(view, found, number)
        sizes = [part.live for part in view.parts]
        assert all(large > sealing.RATIO * small for large, small in pairwise(sizes))
    assert written / view.rows_live <= 3 * np.log(flushes) / np.log(1 + sealing.RATIO)
    assert len(view.parts) <= 2 + np.log(flushes) / np.log(1 + sealing.RATIO)


def test_without_a_codec_the_delta_is_sealed_flat_and_encoded_when_there_is_one() -> None:
    view = _empty().committed(GtidSet.EMPTY, 0, change([], list(range(1, 31)), np.zeros((30, 2), dtype=np.float16)))
    found = due(view, config(delta_rows_flush=FLUSH), Shared(FLAT))
    assert found is not None
    assert (found.codec, len(found.rids)) == (FLAT, 30)
    flat = _published(view, found, 1)
    assert due(flat, config(delta_rows_flush=FLUSH), Shared(FLAT)) is None
    again = due(flat, config(delta_rows_flush=FLUSH), Shared("c1"))
    assert again is not None
    assert (again.codec, again.replaced) == ("c1", ("s1",))


def test_background_work_gives_way_whether_or_not_it_has_used_its_share() -> None:
    given: list[float] = []
    for share in (0.25, 1.0):
        budget = CpuBudget(share, thread_s=lambda: 0.0, now_s=lambda: 0.0, give_way=given.append)
        budget.begin()
        budget.pause()
        assert given == [GIVE_WAY_S]
        budget.pause(urgent=True)
        assert given == [GIVE_WAY_S], "what searches wait for gives way to nobody"
        given.clear()


def test_background_work_waits_for_its_share() -> None:
    now, used, waited = 100.0, 0.0, list[float]()

    def wait(seconds: float) -> bool:
        nonlocal now
        waited.append(seconds)
        now += seconds
        return False

    budget = CpuBudget(0.25, thread_s=lambda: used, now_s=lambda: now, wait=wait)
    budget.begin()
    for _ in range(100):
        used, now = used + 0.02, now + 0.02
        budget.pause()
    assert used <= 0.25 * (now - 100.0) + BURST_S + 1e-6
    before = len(waited)
    used += 5
    budget.pause(urgent=True)
    assert len(waited) == before, "urgent work does not wait"
    budget.stop()
    with pytest.raises(StoppedError):
        budget.pause()


class _Codecs:
    """A collection's codec that changes."""

    def __init__(self) -> None:
        self._current: Codec | None = None

    def current(self) -> Codec | None:
        return self._current

    def train(self, generation: int) -> None:
        index = faiss_index.train(unit_rows(64, generation, DIM).astype(np.float32), 1)
        data = index.codec()
        sha256 = hashlib.sha256(data).hexdigest()
        self._current = Codec(CodecRecord(generation, sha256, index.factory, 64, 64), data)


@pytest.fixture
def codecs() -> _Codecs:
    return _Codecs()


@pytest.fixture
def engine(tmp_path: Path, codecs: _Codecs) -> Iterator[Engine]:
    limits = config(delta_rows_flush=150, train_rows_min=1_000)
    made = Engine(tmp_path, "r1", 1, DIM, limits, FixedClock(), codecs=codecs)
    yield made
    made.close()


def _stored(engine: Engine) -> dict[int, NDArray[np.float16]]:
    rids = engine.view.live_rids()
    with engine.readers.lend() as reader:
        found, bad = reader.vectors([int(rid) for rid in rids])
    assert not bad
    return {int(rid): np.frombuffer(row, dtype="<f2") for rid, row in zip(rids, found, strict=True) if row}


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_every_search_equals_brute_force_through_flushes_merges_and_codecs(
    engine: Engine, codecs: _Codecs, seed: int
) -> None:
    print("seed", seed)
    chance, wanted, kinds = random.Random(seed), dict[str, int](), set[str]()
    for step in range(1, 61):
        names = chance.sample(range(60), chance.randint(1, 25))
        documents = [(f"d{name}", 0 if chance.random() < 0.2 else chance.randint(1, 12)) for name in names]
        future = engine.write(batch(step, documents), 1)
        assert future is not None
        future.result(10)
        wanted.update(documents)
        if step in (20, 40):
            codecs.train(step)
        if chance.random() < 0.6:
            found = sealing.due_for(engine)
            if found is not None:
                sealing.build_and_publish(engine, found)
        view = engine.view
        kinds |= {part.segment.manifest.codec for part in view.parts}
        assert view.rows_live == sum(wanted.values())
        rows = _stored(engine)
        assert len(rows) == view.rows_live
        matrix, rids = np.array(list(rows.values())).reshape(-1, DIM), np.array(list(rows))
        queries, k = np.stack([unit_query(step, DIM), unit_query(1000 + step, DIM)]), chance.choice([1, 10, 400])
        for exact in (True, False):
            for query, answer in zip(queries, view_search.search(view, queries, k, exact=exact), strict=True):
                scores = scoring.scores(matrix, query) if len(rows) else np.empty(0, dtype=np.float32)
                best = np.lexsort((rids, -scores))[:k]
                assert len(answer.rids) >= min(k, len(rows)), "never fewer than there are"
                assert set(answer.rids.tolist()) <= set(rows), "nothing dead or stale"
                known = dict(zip(rids.tolist(), scores.tolist(), strict=True))
                assert [known[rid] for rid in answer.rids.tolist()] == answer.scores.tolist(), "bit for bit"
                if exact:
                    assert answer.scores[:k].tolist() == scores[best].tolist()
    assert len(kinds) >= 3, "flat and two codecs"


def _flushed(engine: Engine, step: int) -> None:
    """Fill the delta and seal it, once."""
    future = engine.write(batch(step, [(f"d{step}-{n}", 20) for n in range(10)]), 1)
    assert future is not None
    future.result(10)
    found = sealing.due_for(engine)
    assert found is not None
    assert (found.with_delta, found.replaced) == (True, ())
    assert sealing.build_and_publish(engine, found) == 1


def test_a_damaged_segment_is_not_merged(engine: Engine) -> None:
    _flushed(engine, 1)
    _flushed(engine, 2)
    found = sealing.due_for(engine)
    assert found is not None
    assert len(found.replaced) == 2
    damaged = engine.view.parts[0].segment
    path = damaged.directory / VECTORS_FILE
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    with pytest.raises(SegmentDamagedError, match="vectors") as caught:
        sealing.build_and_publish(engine, found)
    assert caught.value.segment == damaged.name


def test_a_delta_that_fills_up_during_a_merge_is_flushed_before_the_merge_goes_on(engine: Engine) -> None:
    _flushed(engine, 1)
    _flushed(engine, 2)
    merge = sealing.due_for(engine)
    assert merge is not None
    future = engine.write(batch(3, [(f"d{n}", 20) for n in range(10)] + [("d1-1", 0)]), 1)
    assert future is not None
    future.result(10)
    assert engine.view.delta.live == 200
    assert sealing.build_and_publish(engine, merge) == 2
    view = engine.view
    assert view.delta.live == 0
    assert sorted(part.live for part in view.parts) == [200, 380], "a row that died meanwhile is dead"
    assert _stored(engine).keys() == set(view.live_rids().tolist())


def test_a_stopped_build_leaves_nothing(engine: Engine) -> None:
    future = engine.write(batch(1, [(f"d{n}", 20) for n in range(10)]), 1)
    assert future is not None
    future.result(10)
    found, budget = sealing.due_for(engine), CpuBudget(1.0)
    assert found is not None
    budget.stop()
    with pytest.raises(StoppedError):
        sealing.build_and_publish(engine, found, budget)
    assert list(engine.segments_dir.iterdir()) == []
    assert engine.view.delta.live == 200
