"""Views: immutable while writes go on, and equal to brute force at every step."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from services.quorum.gtid import Gtid, GtidSet
from services.shard import alive as bits
from services.shard import faiss_index, scoring, segment, segment_build, tuning, view_search
from services.shard import view as view_module
from services.shard.delta import CAPACITY_MIN, Delta
from services.shard.segment import Segment
from services.shard.view import Change, Part, View

DIM = 8


def unit_rows(count: int, seed: int, dim: int = DIM) -> NDArray[np.float16]:
    rows = np.random.default_rng(seed).standard_normal((count, dim))
    made: NDArray[np.float16] = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)
    return made


def unit_query(seed: int, dim: int = DIM) -> NDArray[np.float32]:
    row = np.random.default_rng(seed).standard_normal(dim).astype(np.float32)
    return row / np.float32(np.linalg.norm(row))


def empty_view(dim: int = DIM) -> View:
    return View(0, GtidSet.EMPTY, 0, (), Delta.empty(dim), 0, 0, "flat-0")


def change(dead: list[int], born: list[int], vectors: NDArray[np.float16]) -> Change:
    return Change(np.array(dead, dtype=np.int64), np.array(born, dtype=np.int64), vectors, 0, 0)


def build_segment(
    directory: Path,
    name: str,
    rids: NDArray[np.int64],
    vectors: NDArray[np.float16],
    encoding: segment_build.Encoding | None = None,
) -> Segment:
    by_rid = dict(zip(rids.tolist(), vectors, strict=True))
    plan = segment_build.Plan(name, rids, vectors.shape[1], encoding or segment_build.Encoding(), 0.99)
    manifest, building = segment_build.build(
        plan, lambda asked: np.stack([by_rid[r] for r in asked.tolist()]), directory
    )
    sha256 = segment.publish(building, directory / name, manifest)
    return segment.open_segment(directory / name, sha256)


def brute_force(rows: dict[int, NDArray[np.float16]], query: NDArray[np.float32], k: int) -> list[tuple[float, int]]:
    scored = [(float(scoring.scores(row[None, :], query)[0]), rid) for rid, row in rows.items()]
    return sorted(scored, key=lambda entry: (-entry[0], entry[1]))[:k]


def found_by(view: View, query: NDArray[np.float32], k: int, *, exact: bool) -> list[tuple[float, int]]:
    candidates = view_search.search(view, query[None, :], k, exact=exact)[0]
    scored = zip(candidates.scores.tolist(), candidates.rids.tolist(), strict=True)
    return sorted(scored, key=lambda entry: (-entry[0], entry[1]))[:k]


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_every_view_keeps_answering_as_it_did_when_it_was_published(data: st.DataObject) -> None:
    """An update must never vanish from a search that began before it, nor appear in one."""
    view, live, next_rid = empty_view(), dict[int, NDArray[np.float16]](), 1
    history: list[tuple[View, dict[int, NDArray[np.float16]]]] = []
    for step in range(data.draw(st.integers(1, 12))):
        dead = data.draw(st.lists(st.sampled_from(sorted(live)), unique=True, max_size=6)) if live else []
        count = data.draw(st.integers(0, 90))
        vectors = unit_rows(count, step)
        born = list(range(next_rid, next_rid + count))
        next_rid += count
        for rid in dead:
            del live[rid]
        live.update(zip(born, vectors, strict=True))
        view = view.committed(view.applied.add(Gtid(1, step + 1)), step, change(dead, born, vectors))
        history.append((view, dict(live)))
    query, k = unit_query(99), data.draw(st.integers(1, 20))
    for number, (old, rows) in enumerate(history, start=1):
        assert old.rows_live == len(rows)
        assert len(old.applied) == number
        assert sorted(old.live_rids().tolist()) == sorted(rows)
        for exact in (True, False):
            assert found_by(old, query, k, exact=exact) == brute_force(rows, query, k)


def test_an_older_delta_reads_the_block_that_a_newer_one_has_left() -> None:
    """Its memory is a mapping of its own, which must last as long as the last array that looks into it."""
    rows = unit_rows(3 * CAPACITY_MIN, 4)
    old = Delta.empty(DIM).plus(np.arange(CAPACITY_MIN), rows[:CAPACITY_MIN])
    kept = old.vectors
    new = old.without(np.array([3])).plus(np.arange(CAPACITY_MIN, len(rows)), rows[CAPACITY_MIN:])
    assert new.block is not old.block
    del old
    assert np.array_equal(kept, rows[:CAPACITY_MIN])
    assert np.array_equal(new.vectors, np.delete(rows, 3, axis=0))


@given(st.sets(st.integers(0, 199)), st.integers(1, 200), st.integers(0, 40))
@settings(max_examples=100, deadline=None)
def test_a_bitmap_is_a_set_of_positions(gone: set[int], length: int, added: int) -> None:
    full = bits.extended(np.empty(0, dtype=np.uint8), 0, length)
    positions = np.array(sorted(p for p in gone if p < length), dtype=np.int64)
    cleared = bits.cleared(full, positions)
    grown = bits.extended(cleared, length, added)
    expected = (set(range(length)) - set(positions.tolist())) | set(range(length, length + added))
    assert set(np.flatnonzero(bits.to_mask(grown, length + added)).tolist()) == expected
    assert bits.count(grown) == len(expected)
    assert bits.count(full) == length, "the original is untouched"


def test_scores_do_not_depend_on_where_a_row_lies() -> None:
    rows, query = unit_rows(500, 1, 384), unit_query(2, 384)
    whole = scoring.scores(rows, query)
    shuffled = np.random.default_rng(3).permutation(500)
    assert np.array_equal(scoring.scores(rows[shuffled][:77], query), whole[shuffled][:77])
    assert np.array_equal(scoring.scores(rows[7:8].astype(np.float32), query), whole[7:8])


def test_a_tie_across_the_kth_place_is_returned_whole() -> None:
    same = np.repeat(unit_rows(1, 5), 60, axis=0)
    view = empty_view().committed(GtidSet.EMPTY, 0, change([], list(range(1, 61)), same))
    candidates = view_search.search(view, same[:1].astype(np.float32), 3, exact=False)[0]
    assert sorted(candidates.rids.tolist()) == list(range(1, 61))


@pytest.mark.parametrize("piece_rows", [view_module.PIECE_ROWS, 64])
def test_a_row_that_died_while_a_segment_was_built_is_dead_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece_rows: int
) -> None:
    monkeypatch.setattr(view_module, "PIECE_ROWS", piece_rows)
    vectors = unit_rows(900, 7, 16)
    rids = np.arange(1, 901, dtype=np.int64)
    view = empty_view(16).committed(GtidSet.EMPTY, 0, change([], rids.tolist(), vectors))
    made = build_segment(tmp_path, "segment-a", rids[:800], vectors[:800])
    later = view.committed(GtidSet.EMPTY, 1, change([5, 799, 850], [901], unit_rows(1, 8, 16)))
    sealed = later.sealed(made, frozenset())
    assert sealed.rows_live == later.rows_live == 898
    assert sealed.delta.live == 100
    assert sealed.live_rids().tolist() == later.live_rids().tolist()
    assert sealed.index_epoch.split("-")[0] == made.manifest.codec
    assert sealed.digest == later.digest
    flat = build_segment(tmp_path, "segment-b", rids[800:], vectors[800:], segment_build.Encoding(flat=True))
    whole = build_segment(tmp_path, "segment-c", rids, vectors)
    merged = sealed.sealed(flat, frozenset()).sealed(whole, frozenset({"segment-a", "segment-b"}))
    assert [part.live for part in merged.parts] == [897]
    assert merged.live_rids().tolist() == later.live_rids().tolist()
    for rid in (5, 799, 850):
        query = vectors[rid - 1].astype(np.float32)
        for exact in (True, False):
            assert rid not in [found for _, found in found_by(sealed, query, 5, exact=exact)]
            assert found_by(view, query, 1, exact=exact)[0][1] == rid, "the older view still has it"


def test_exact_search_over_segments_and_delta_equals_brute_force(tmp_path: Path) -> None:
    vectors = unit_rows(1500, 11, 16)
    rows = {rid: vectors[rid - 1] for rid in range(1, 1501)}
    rids = np.arange(1, 1501, dtype=np.int64)
    view = empty_view(16).committed(GtidSet.EMPTY, 0, change([], rids.tolist(), vectors))
    view = view.sealed(build_segment(tmp_path, "segment-a", rids[:700], vectors[:700]), frozenset())
    view = view.sealed(build_segment(tmp_path, "segment-b", rids[700:1400], vectors[700:1400]), frozenset())
    dead = list(range(1, 1500, 3))
    view = view.committed(GtidSet.EMPTY, 1, change(dead, [], unit_rows(0, 0, 16)))
    for rid in dead:
        del rows[rid]
    for seed in range(5):
        query = unit_query(seed, 16)
        assert found_by(view, query, 25, exact=True) == brute_force(rows, query, 25)
    everything = found_by(view, unit_query(1, 16), 1000, exact=False)
    assert len(everything) == len(rows), "inverted lists are widened until nothing live is left out"


@pytest.mark.parametrize("k", [1, 10, 60])
def test_one_query_is_answered_as_in_a_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, k: int) -> None:
    """Alone, its lists are found once for all segments of a codec, and only what can be among the best is scored."""
    monkeypatch.setattr(view_search, "SCAN_ROWS_MAX", 100)
    vectors = unit_rows(4_000, 17, 16)
    vectors[3_000:3_040] = vectors[10]  # ties in the delta and in a segment, beyond every border
    rids = np.arange(4_000, dtype=np.int64)
    one, two = (faiss_index.train(vectors.astype(np.float32), 1, lists=lists) for lists in (32, 16))
    view = empty_view(16).committed(GtidSet.EMPTY, 0, change([], rids.tolist(), vectors))
    pieces = [
        (rids[:1_200], segment_build.Encoding(False, one.codec(), 4_000, 4_000)),
        (rids[1_200:1_800], segment_build.Encoding(False, one.codec(), 4_000, 4_000)),
        (rids[1_800:2_500], segment_build.Encoding(False, two.codec(), 4_000, 4_000)),
        (rids[2_500:2_900], segment_build.Encoding(flat=True)),
        (rids[2_900:2_980], segment_build.Encoding(flat=True)),
    ]
    for number, (rows, encoding) in enumerate(pieces):
        made = build_segment(tmp_path, f"segment-{number}", rows, vectors[rows], encoding)
        view = view.sealed(replace(made, manifest=replace(made.manifest, nprobe=3 + number)), frozenset())
    thinned = view.committed(GtidSet.EMPTY, 1, change(list(range(0, 4_000, 3)), [], unit_rows(0, 0, 16)))
    queries = np.concatenate([[vectors[10].astype(np.float32)], [unit_query(seed, 16) for seed in range(30)]])
    used: list[int] = []
    search_lists = faiss_index.RefinedIndex.search_lists

    def recorded(self: faiss_index.RefinedIndex, *settings: Any) -> Any:
        used.append(len(settings[3]))
        return search_lists(self, *settings)

    monkeypatch.setattr(faiss_index.RefinedIndex, "search_lists", recorded)
    for state in (view, thinned):
        together = view_search.search(state, queries, k, exact=False)
        assert not used, "a batch is left to FAISS"
        for query, batch in zip(queries, together, strict=True):
            alone = view_search.search(state, query[None, :], k, exact=False)[0]
            reached = batch.scores >= batch.scores[k - 1]
            for column in ("scores", "rids", "parts"):
                assert sorted(getattr(alone, column).tolist()) == sorted(getattr(batch, column)[reached].tolist())
        assert len(used) == 2 * len(queries), "of the two segments that share a codec"
        used.clear()


def test_a_search_looks_harder_only_where_all_parts_together_found_too_little(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two segments whose rows lie on opposite sides, each searched with one list."""
    monkeypatch.setattr(view_search, "SCAN_ROWS_MAX", 0)
    vectors = unit_rows(1_600, 13, 16)
    vectors[:800, 0], vectors[800:, 0] = np.abs(vectors[:800, 0]) + 2, -np.abs(vectors[800:, 0]) - 2
    rids = np.arange(1_600, dtype=np.int64)
    index = faiss_index.train(vectors.astype(np.float32), 1, lists=32)
    encoding = segment_build.Encoding(False, index.codec(), 1_600, 1_600)
    parts = []
    for name, rows in (("segment-a", rids[:800]), ("segment-b", rids[800:])):
        made = build_segment(tmp_path, name, rows, vectors[rows], encoding)
        parts.append(Part.of(replace(made, manifest=replace(made.manifest, nprobe=1)), rows))
    view = replace(empty_view(16), parts=tuple(parts))
    efforts: list[int] = []
    search = faiss_index.RefinedIndex.search

    def recorded(self: faiss_index.RefinedIndex, *settings: Any) -> Any:
        efforts.append(settings[3])
        return search(self, *settings)

    search_lists = faiss_index.RefinedIndex.search_lists

    def recorded_lists(self: faiss_index.RefinedIndex, *settings: Any) -> Any:
        efforts.append(len(settings[3]))
        return search_lists(self, *settings)

    monkeypatch.setattr(faiss_index.RefinedIndex, "search", recorded)
    monkeypatch.setattr(faiss_index.RefinedIndex, "search_lists", recorded_lists)
    query = vectors[5].astype(np.float32)
    assert all(rid < 800 for _, rid in found_by(view, query, 5, exact=False))
    assert efforts == [1, 1], "the far segment has nothing in that list, and is not asked again"
    efforts.clear()
    assert len(found_by(view, query, 790, exact=False)) == 790
    assert efforts[:5] == [1, 1, 1, 1, 4], "now they are, with ever greater effort"
    assert max(efforts) > 4


def test_equal_rows_give_an_equal_codec_and_settings_are_measured(tmp_path: Path) -> None:
    vectors = unit_rows(700, 3, 16)
    rids = np.arange(1, 701, dtype=np.int64)
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    one = build_segment(tmp_path / "one", "segment-a", rids, vectors)
    two = build_segment(tmp_path / "two", "segment-a", rids + 5000, vectors)
    assert one.manifest.codec == two.manifest.codec
    assert one.manifest.factory == "IVF32,PQ4x4fs"
    assert one.manifest.recall >= 0.99
    assert one.manifest.candidates(10) <= one.manifest.candidates(50) <= one.manifest.candidates(500)


@pytest.mark.parametrize("name", segment.DATA_FILES)
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_damaged_segment_file_is_noticed(tmp_path: Path, name: str, damage: str) -> None:
    made = build_segment(tmp_path, "segment-a", np.arange(1, 701, dtype=np.int64), unit_rows(700, 3, 16))
    manifest_sha = segment.sha256_of(made.directory / segment.MANIFEST_FILE)
    path = made.directory / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes(data if damage == "flip" else data[:-3])
    with pytest.raises(segment.SegmentDamagedError, match=name.split(".")[0]):
        segment.open_segment(made.directory, manifest_sha)


def test_the_nearest_divisor_to_a_quarter_of_the_dimensions() -> None:
    assert [faiss_index.subquantizers(dim) for dim in (384, 768, 50, 7, 1)] == [96, 192, 50, 1, 1]
    assert [faiss_index.inverted_lists(rows) for rows in (1, 39, 9_984, 100_000, 10**6)] == [1, 2, 512, 2048, 2048]


def test_recall_on_real_vectors() -> None:
    path = Path(__file__).resolve().parents[3] / "shared" / "data" / "sysdocs_minilm_f16.npy"
    if not path.exists():
        pytest.skip(f"{path} is not here")
    loaded = np.load(path, mmap_mode="r")
    vectors, queries = np.array(loaded[:6000]), loaded[6000:6200].astype(np.float32)
    index = faiss_index.train(vectors.astype(np.float32), 1)
    index.add(vectors.astype(np.float32))
    chosen = tuning.measure(index, vectors, 0.99)
    truth = np.argsort(-(queries @ vectors.astype(np.float32).T), axis=1)[:, :10]
    found = index.search(queries, chosen.candidates_10, chosen.nprobe, None)
    recall = np.mean([np.isin(want, have).mean() for want, have in zip(truth, found, strict=True)])
    assert recall >= 0.97, chosen
