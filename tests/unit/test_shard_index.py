"""Every index kind through the same tests, against brute force."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from services.shard import faiss_index
from services.shard.faiss_index import IndexFileError, Kind, RawWriter, RefinedIndex, open_raw, sealed_file
from services.shard.faiss_index import binary as binary_index
from services.shard.faiss_index.candidates import imbalance as imbalance_of
from services.shard.faiss_index.candidates import sampled_imbalance

ROWS, DIM, LISTS, SEED = 1_500, 20, 8, 5


@pytest.fixture(scope="module")
def rows() -> NDArray[np.float16]:
    faiss_index.use_one_thread()
    print(f"seed {SEED}")
    made = np.random.default_rng(SEED).standard_normal((ROWS, DIM))
    unit: NDArray[np.float16] = (made / np.linalg.norm(made, axis=1, keepdims=True)).astype(np.float16)
    return unit


@pytest.fixture(scope="module")
def queries(rows: NDArray[np.float16]) -> NDArray[np.float32]:
    return (rows[:16].astype(np.float32) + 0.1 * rows[16:32].astype(np.float32)).astype(np.float32)


@pytest.fixture(scope="module")
def alive() -> NDArray[np.uint8]:
    return np.random.default_rng(SEED + 1).integers(0, 256, (ROWS + 7) // 8, dtype=np.uint8)


@pytest.fixture(scope="module", params=list(Kind))
def index(request: pytest.FixtureRequest, rows: NDArray[np.float16]) -> faiss_index.CandidateIndex:
    made = faiss_index.train(rows.astype(np.float32), 1, request.param, LISTS)
    made.add(rows.astype(np.float32))
    return made


def raw_file(path: Path, rows: NDArray[np.float16]) -> Path:
    with RawWriter(path, rows.shape[1]) as writer:
        for start in range(0, len(rows), 400):
            writer.append(rows[start : start + 400])
    return path


def mask_of(alive: NDArray[np.uint8]) -> NDArray[np.bool_]:
    return np.unpackbits(alive, count=ROWS, bitorder="little").astype(np.bool_)


@pytest.mark.parametrize("masked", [False, True])
def test_everything_probed_and_re_ranked_is_brute_force(
    index: faiss_index.CandidateIndex,
    rows: NDArray[np.float16],
    queries: NDArray[np.float32],
    alive: NDArray[np.uint8],
    tmp_path: Path,
    masked: bool,
) -> None:
    refined = RefinedIndex(index, open_raw(raw_file(tmp_path / "raw", rows), DIM))
    scores, found = refined.search(queries, 10, ROWS, index.effort_max, alive if masked else None)
    exact = queries @ rows.astype(np.float32).T
    if masked:
        exact[:, ~mask_of(alive)] = -np.inf
    best = -np.sort(-exact, axis=1)[:, :10]
    np.testing.assert_allclose(scores, best, atol=1e-5)
    np.testing.assert_allclose(np.take_along_axis(exact, found, axis=1), best, atol=1e-5)


def test_no_dead_row_is_ever_a_candidate(
    index: faiss_index.CandidateIndex, queries: NDArray[np.float32], alive: NDArray[np.uint8]
) -> None:
    for effort in (1, 4, index.effort_max):
        found = index.search(queries, 200, effort, alive)
        assert mask_of(alive)[found[found >= 0]].all()
        filled = found >= 0
        assert (filled[:, :-1] >= filled[:, 1:]).all(), "-1 stands at the end only"


def test_one_living_row_is_found(index: faiss_index.CandidateIndex, queries: NDArray[np.float32]) -> None:
    only = np.zeros((ROWS + 7) // 8, dtype=np.uint8)
    only[700 // 8] = 1 << (700 % 8)
    assert (index.search(queries, 5, index.effort_max, only)[:, 0] == 700).all()


def test_a_codec_gives_an_equal_index(
    index: faiss_index.CandidateIndex, rows: NDArray[np.float16], queries: NDArray[np.float32]
) -> None:
    codec = index.codec()
    again = faiss_index.from_codec(codec)
    assert (again.kind, again.dim, again.rows, again.factory) == (index.kind, DIM, 0, index.factory)
    assert again.codec() == codec
    again.add(rows.astype(np.float32))
    effort = index.effort_max
    np.testing.assert_array_equal(again.search(queries, 30, effort, None), index.search(queries, 30, effort, None))
    assert faiss_index.kind_of(index.factory) is index.kind
    assert len(faiss_index.codec_id(codec)) == 8


def test_equal_samples_give_equal_codecs(index: faiss_index.CandidateIndex, rows: NDArray[np.float16]) -> None:
    again = faiss_index.train(rows.astype(np.float32), 1, index.kind, LISTS)
    assert again.codec() == index.codec()


def test_a_file_gives_an_equal_index(
    index: faiss_index.CandidateIndex, queries: NDArray[np.float32], alive: NDArray[np.uint8], tmp_path: Path
) -> None:
    path = tmp_path / "index"
    index.write(path)
    again = faiss_index.read(path, index.kind, DIM)
    for effort in (1, 3, index.effort_max):
        found, wanted = again.search(queries, 30, effort, alive), index.search(queries, 30, effort, alive)
        np.testing.assert_array_equal(found, wanted)
    assert again.list_imbalance() == index.list_imbalance()
    assert again.list_lengths().sum() == ROWS


def test_a_foreign_or_damaged_file_is_refused(index: faiss_index.CandidateIndex, tmp_path: Path) -> None:
    path = tmp_path / "index"
    index.write(path)
    data = path.read_bytes()
    other = Kind.HNSW if index.kind is Kind.FLAT else Kind.FLAT
    with pytest.raises(IndexFileError, match=f"kind {index.kind}; {other} is wanted"):
        faiss_index.read(path, other, DIM)
    with pytest.raises(IndexFileError, match="20 dimensions; 21 are wanted"):
        faiss_index.read(path, index.kind, 21)
    for length in (0, 3, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(IndexFileError, match="cut short"):
            faiss_index.read(path)
    path.write_bytes(b"x" + data)
    with pytest.raises(IndexFileError, match="belongs to"):
        faiss_index.read(path)


def test_a_file_of_another_faiss_is_refused(
    index: faiss_index.CandidateIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index.write(tmp_path / "index")
    monkeypatch.setattr(sealed_file, "VERSION", "9.9.9")
    with pytest.raises(IndexFileError, match=r"written by FAISS .*; this is 9\.9\.9"):
        faiss_index.read(tmp_path / "index")


def test_concurrent_searches_do_not_disturb_each_other(
    index: faiss_index.CandidateIndex,
    rows: NDArray[np.float16],
    queries: NDArray[np.float32],
    alive: NDArray[np.uint8],
    tmp_path: Path,
) -> None:
    refined = RefinedIndex(index, open_raw(raw_file(tmp_path / "raw", rows), DIM))
    settings = [(count, effort, bits) for count in (20, 90) for effort in (1, 3, 8) for bits in (None, alive)]

    def run(number: int) -> NDArray[np.int64]:
        faiss_index.use_one_thread()
        count, effort, bits = settings[number % len(settings)]
        return refined.search(queries, 5, count, effort, bits)[1]

    alone = [run(number) for number in range(len(settings))]
    with ThreadPoolExecutor(4) as pool:
        for number, found in enumerate(pool.map(run, range(8 * len(settings)))):
            np.testing.assert_array_equal(found, alone[number % len(settings)])


def test_coding_error_and_size(index: faiss_index.CandidateIndex, rows: NDArray[np.float16]) -> None:
    error, imbalance = index.fit(rows.astype(np.float32))
    assert imbalance >= 1.0
    assert 0.0 <= error < 1.0
    assert (error == 0.0) == (index.kind in (Kind.BINARY_IVF, Kind.FLAT)), "float16 rows are themselves"
    assert index.bytes_per_row > 0


@pytest.mark.parametrize("kind", [Kind.IVF_PQ, Kind.IVF_PQ_FASTSCAN])
def test_too_few_training_rows_are_refused(kind: Kind) -> None:
    with pytest.raises(ValueError, match="training rows, not 10"):
        faiss_index.train(np.zeros((10, DIM), dtype=np.float32), 1, kind, 1)


def test_raw_vectors_come_back_bit_by_bit(rows: NDArray[np.float16], tmp_path: Path) -> None:
    raw = open_raw(raw_file(tmp_path / "raw", rows), DIM)
    np.testing.assert_array_equal(raw.vectors, rows)
    assert not raw.vectors.flags.writeable
    data = (tmp_path / "raw").read_bytes()
    with pytest.raises(IndexFileError, match="20 dimensions; 24 are wanted"):
        open_raw(tmp_path / "raw", 24)
    for broken, said in ((data[:-1], "cut short"), (data[:50], "not a file"), (b"\0" * 200, "not a file")):
        (tmp_path / "raw").write_bytes(broken)
        with pytest.raises(IndexFileError, match=said):
            open_raw(tmp_path / "raw", DIM)


def test_an_unfinished_raw_file_is_refused(rows: NDArray[np.float16], tmp_path: Path) -> None:
    def cut_off() -> None:
        with RawWriter(tmp_path / "raw", DIM) as writer:
            writer.append(rows)
            raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        cut_off()
    with pytest.raises(IndexFileError, match="unfinished"):
        open_raw(tmp_path / "raw", DIM)


def test_index_and_raw_vectors_must_agree(rows: NDArray[np.float16], tmp_path: Path) -> None:
    index = faiss_index.train(rows.astype(np.float32), 1, Kind.IVF_SQ8, LISTS)
    with pytest.raises(ValueError, match="0 rows of 20 dimensions, the raw vectors 1500"):
        RefinedIndex(index, open_raw(raw_file(tmp_path / "raw", rows), DIM))


@given(st.integers(1, 2_000))
def test_subquantisers_divide(dim: int) -> None:
    assert dim % faiss_index.subquantizers(dim) == 0


@given(st.integers(1, 10**8), st.integers(1, 2_000))
def test_lists_have_enough_rows(rows: int, dim: int) -> None:
    lists = faiss_index.inverted_lists(rows, dim)
    assert lists & (lists - 1) == 0
    assert lists == 1 or lists * faiss_index.TRAIN_POINTS_PER_CENTROID_MIN <= rows


def test_imbalance_is_estimated_from_a_small_sample() -> None:
    lists = 4_096
    rng = np.random.default_rng(7)
    for spread in (0.0, 0.5, 1.0):
        weights = rng.lognormal(0.0, spread, lists)
        rows = np.bincount(rng.choice(lists, 10**6, p=weights / weights.sum()), minlength=lists)
        sample = np.bincount(rng.choice(lists, 2_048, p=weights / weights.sum()), minlength=lists)
        assert sampled_imbalance(sample) == pytest.approx(imbalance_of(rows), rel=0.2)
        assert imbalance_of(sample) > 1.5 * imbalance_of(rows), "mostly chance"
    assert sampled_imbalance(np.array([1, 0])) == 1.0


@given(st.sampled_from(list(Kind)), st.integers(1, 600), st.integers(1, 65_536))
def test_a_factory_string_names_its_kind(kind: Kind, dim: int, lists: int) -> None:
    assert faiss_index.kind_of(faiss_index.factory_string(kind, dim, lists)) is kind


def test_an_unknown_factory_string_is_refused() -> None:
    with pytest.raises(ValueError, match="'LSH' is not the factory string"):
        faiss_index.kind_of("LSH")


@given(st.lists(st.integers(-1, 63), min_size=1, max_size=40), st.integers(1, 50), st.binary(min_size=8, max_size=8))
def test_dead_positions_are_dropped_in_order(positions: list[int], count: int, bits: bytes) -> None:
    alive = np.frombuffer(bits, dtype=np.uint8)
    kept = binary_index.only_alive(np.array([positions], dtype=np.int64), count, alive)
    wanted = [p for p in positions if p >= 0 and alive[p // 8] >> (p % 8) & 1][:count]
    assert kept.tolist() == [wanted + [-1] * (count - len(wanted))]


@given(st.integers(1, 9), st.integers(1, 40), st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_exact_search_by_chunks(chunk: int, rows: int, count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    vectors, queries = rng.standard_normal((rows, 4)).astype(np.float16), rng.standard_normal((3, 4)).astype(np.float32)
    scores, found = faiss_index.nearest_batch(queries, vectors, count, chunk)
    exact = queries @ vectors.astype(np.float32).T
    np.testing.assert_allclose(scores, -np.sort(-exact, axis=1)[:, :count], atol=1e-4)
    np.testing.assert_allclose(np.take_along_axis(exact, found, axis=1), scores, atol=1e-4)
    pauses: list[None] = []
    faiss_index.nearest_batch(queries, vectors, count, chunk, lambda: pauses.append(None))
    assert len(pauses) == -(-rows // chunk)
