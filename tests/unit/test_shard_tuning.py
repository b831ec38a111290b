"""Settings are measured on the rows and hold for queries that were not used to choose them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from services.shard import faiss_index, tuning
from services.shard.faiss_index import Kind
from services.shard.tuning import Point

SEED = 11


def clustered(rows: int, dim: int, seed: int, centres: int = 60) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    middle = rng.standard_normal((centres, dim))
    made = middle[rng.integers(0, centres, rows)] + 0.7 * rng.standard_normal((rows, dim))
    unit: NDArray[np.float32] = (made / np.linalg.norm(made, axis=1, keepdims=True)).astype(np.float32)
    return unit


@pytest.mark.parametrize("kind", [kind for kind in Kind if kind is not Kind.FLAT])
@pytest.mark.parametrize("order", ["random", "sorted"])
def test_recall_holds_for_queries_not_used(kind: Kind, order: str) -> None:
    print(f"seed {SEED}")
    faiss_index.use_one_thread()
    made = clustered(5_200, 32, SEED)
    vectors, queries = made[:5_000], made[5_000:]
    if order == "sorted":
        vectors = vectors[np.argsort(vectors[:, 0])]
    index = faiss_index.train(vectors, 1, kind, 32)
    index.add(vectors)
    settings = tuning.measure(index, vectors.astype(np.float16), 0.98)
    truth = faiss_index.nearest_batch(queries, vectors, 10)[1]
    found = index.search(queries, settings.candidates_10, settings.nprobe, None)
    recall = np.mean([np.isin(want, have).mean() for want, have in zip(truth, found, strict=True)])
    assert recall >= 0.98, settings
    assert settings == tuning.measure(index, vectors.astype(np.float16), 0.98), "equal rows give equal settings"


@pytest.mark.parametrize("apart", [False, True])
def test_a_segment_is_searched_as_hard_as_its_place_in_the_view_asks(*, apart: bool) -> None:
    """Beside many rows like its own it has one in six of the ten best, near ones; far from all others it has all."""
    print(f"seed {SEED}")
    faiss_index.use_one_thread()
    made = clustered(12_500, 32, SEED)
    if apart:
        made[:2_000] = clustered(2_000, 32, SEED + 1, centres=5)
    mine, others, queries = made[:2_000], made[2_000:12_000], made[12_000:]
    index = faiss_index.train(made, 1, Kind.IVF_PQ_FASTSCAN, 64)
    index.add(mine)
    around = tuning.Surroundings(lambda asked: faiss_index.nearest_batch(asked, others, 10)[0])
    alone = tuning.measure(index, mine.astype(np.float16), 0.98)
    among = tuning.measure(index, mine.astype(np.float16), 0.98, surroundings=around)
    if apart:
        assert among == alone
        return
    assert among.nprobe * 2 <= alone.nprobe, "far fewer lists"
    best = np.sort(np.concatenate([queries @ mine.T, queries @ others.T], axis=1), axis=1)[:, -10]
    found = index.search(queries, among.candidates_10, among.nprobe, None)
    scores = np.where(found >= 0, np.einsum("qcd,qd->qc", mine[found], queries), -1)
    wanted = (queries @ mine.T >= best[:, None] - 1e-5).sum()
    missed = wanted - (scores >= best[:, None] - 1e-5).sum()
    assert missed <= 0.02 * 10 * len(queries), "of the ten best of the view"


def test_settings_that_suffice_for_the_largest_part_are_tried_first() -> None:
    faiss_index.use_one_thread()
    vectors = clustered(4_000, 32, SEED)
    index = faiss_index.train(vectors, 1, Kind.IVF_PQ_FASTSCAN, 64)
    index.add(vectors[:1_000])
    rest = tuning.Surroundings(lambda asked: faiss_index.nearest_batch(asked, vectors[1_000:], 10)[0], effort=40)
    measured = tuning.measure(index, vectors[:1_000].astype(np.float16), 0.9, surroundings=rest)
    assert measured.nprobe == 40


def test_a_target_out_of_reach_gives_the_best_there_is() -> None:
    vectors = clustered(600, 16, SEED)
    index = faiss_index.train(vectors, 1, Kind.IVF_SQ8, 4)
    index.add(vectors)
    settings = tuning.measure(index, vectors.astype(np.float16), 1.01)
    assert settings.nprobe <= 4
    assert settings.recall == 1.0


@pytest.mark.parametrize("rows", [1, 2, 5, 40])
def test_few_rows(rows: int) -> None:
    vectors = clustered(rows, 8, SEED)
    index = faiss_index.train(vectors, 1, Kind.IVF_SQ8, 1)
    index.add(vectors)
    settings = tuning.measure(index, vectors.astype(np.float16), 0.99)
    assert settings.nprobe == 1
    assert settings.recall == 1.0


def test_equal_rows_stand_for_one_another() -> None:
    vectors = np.repeat(clustered(4, 8, SEED), 200, axis=0)
    index = faiss_index.train(vectors, 1, Kind.IVF_SQ8, 2)
    index.add(vectors)
    assert tuning.measure(index, vectors.astype(np.float16), 0.99).recall >= 0.99


def test_measuring_gives_way_and_can_be_abandoned() -> None:
    vectors = clustered(600, 16, SEED)
    index = faiss_index.train(vectors, 1, Kind.IVF_SQ8, 4)
    index.add(vectors)

    def pause() -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        tuning.measure(index, vectors.astype(np.float16), 0.99, pause)


@given(st.integers(1, 20_000))
def test_numbers_of_candidates_ascend_to_the_most(most: int) -> None:
    found = tuning.numbers(most)
    assert found[-1] == most
    assert found == sorted(set(found))
    assert len(found) < 40


POINTS = st.builds(
    Point,
    effort=st.integers(1, 50),
    candidates=st.integers(1, 500),
    recall=st.floats(0, 1),
    recall_both=st.floats(0, 1),
    recall_sure=st.floats(0, 1),
    recall_100=st.floats(0, 1),
    scanned=st.floats(0, 1),
    cost_ns=st.floats(1, 1e6),
)


@given(st.lists(POINTS, min_size=1, max_size=30), st.floats(0, 1))
def test_the_cheapest_that_suffices(points: list[Point], target: float) -> None:
    chosen = tuning.choose(points, target)
    modest = [point for point in points if point.scanned <= tuning.SCANNED_MAX]
    good = [point for point in points if point.recall_sure >= target]
    assert chosen in points
    if sure := [point for point in modest if point.recall_sure >= target]:
        assert chosen.cost_ns == min(point.cost_ns for point in sure)
        assert chosen in sure
    elif surest := [
        point
        for point in modest
        if point.recall_both >= target and all(point.recall_sure >= p.recall_sure - tuning.AS_SURE for p in modest)
    ]:
        assert chosen.cost_ns == min(point.cost_ns for point in surest)
        assert chosen in surest
    elif good:
        assert chosen.cost_ns == min(point.cost_ns for point in good)
        assert chosen.recall_sure >= target
    else:
        assert chosen.recall_sure == max(point.recall_sure for point in points)
    settings = tuning.settings_of(points, target)
    assert settings.candidates_100 >= settings.candidates_10
