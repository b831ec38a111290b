"""Training is bounded and repeatable, and cells are the same to everybody who asks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from services.placement import kmeans
from services.placement.cells import CELLS_MAX, Cells, CellsError, centre

DIM = 6


def unit(rows: int, seed: int, dim: int = DIM) -> NDArray[np.float32]:
    made = np.random.default_rng(seed).standard_normal((rows, dim))
    return np.asarray(made / np.linalg.norm(made, axis=1, keepdims=True), dtype=np.float32)


def clusters(seed: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Four far corners with 50 rows around each: (rows, which)."""
    random = np.random.default_rng(seed)
    which = np.repeat(np.arange(4), 50)
    made = np.eye(DIM)[which] + 0.05 * random.standard_normal((200, DIM))
    return np.asarray(made / np.linalg.norm(made, axis=1, keepdims=True), dtype=np.float32), which


@given(rows=st.integers(1, 80), count=st.integers(1, 20), seed=st.integers(0, 99))
def test_a_seed_decides_and_centroids_are_unit(rows: int, count: int, seed: int) -> None:
    data = unit(rows, seed)
    made = kmeans.train(data, count, seed)
    assert np.array_equal(made, kmeans.train(data, count, seed))
    assert len(made) == min(count, rows)
    assert np.allclose(np.linalg.norm(made, axis=1), 1, atol=1e-5)


def test_another_seed_begins_elsewhere() -> None:
    data = unit(80, 1)
    assert not np.array_equal(kmeans.train(data, 8, 1, rounds_max=0), kmeans.train(data, 8, 2, rounds_max=0))


@given(st.integers(0, 99))
def test_clear_clusters_are_found(seed: int) -> None:
    rows, which = clusters(seed)
    found = Cells(kmeans.train(rows, 4, seed)).nearest(rows)
    assert len({(int(cell), int(corner)) for cell, corner in zip(found, which, strict=True)}) == 4


def test_rounds_improve_the_mean_cosine() -> None:
    rows = unit(600, 5)

    def mean(rounds: int) -> float:
        return float((rows @ kmeans.train(rows, 16, 5, rounds_max=rounds).T).max(axis=1).mean())

    assert mean(25) > mean(0) + 0.02


def test_equal_rows_give_one_centroid() -> None:
    assert len(kmeans.train(np.repeat(unit(1, 3), 40, axis=0), 8, 3)) == 1


@pytest.mark.parametrize("rows", [np.empty((0, 3), np.float32), np.ones(3, np.float32)])
def test_nothing_to_train_on_is_refused(rows: NDArray[np.float32]) -> None:
    with pytest.raises(ValueError, match="needs rows"):
        kmeans.train(rows, 4, 1)


@given(seed=st.integers(0, 200), count=st.integers(1, 40))
def test_one_at_a_time_or_together_the_cell_is_the_same(seed: int, count: int) -> None:
    cells = Cells(unit(count, seed))
    # Rows half-way between two centroids are where rounding would decide.
    pairs = cells.centroids + np.roll(cells.centroids, 1, axis=0)
    rows = np.concatenate([unit(30, seed + 1), centred(pairs)])
    together = cells.nearest(rows)
    assert together.tolist() == [int(cells.nearest(row[None, :])[0]) for row in rows]
    assert together[:30].tolist() == [cells.of_document(row[None, :]) for row in rows[:30]]
    for row, cell in zip(rows, together, strict=True):
        distances = cells.distances(row)
        assert distances[cell] <= distances.min() + 1e-6


def centred(pairs: NDArray[np.float32]) -> NDArray[np.float32]:
    lengths = np.linalg.norm(pairs, axis=1, keepdims=True)
    return np.asarray(np.where(lengths > 1e-3, pairs / np.maximum(lengths, 1e-3), unit(1, 0)), dtype=np.float32)


def test_a_document_lies_where_its_passages_do_on_average() -> None:
    cells = Cells(np.eye(3, dtype=np.float32))
    first, second, _ = np.eye(3, dtype=np.float32)
    assert cells.of_document(np.stack([first, second, second])) == 1
    assert cells.of_document(np.stack([first, first, second])) == 0
    assert np.array_equal(centre(np.stack([second, -second])), second), "passages that cancel out: the first decides"
    with pytest.raises(ValueError, match="at least one"):
        cells.of_document(np.empty((0, 3), np.float32))


def test_bytes_and_back() -> None:
    cells = Cells(unit(7, 2))
    again = Cells.from_bytes(cells.to_bytes())
    assert np.array_equal(again.centroids, cells.centroids)
    assert again.digest == cells.digest
    assert Cells(unit(7, 3)).digest != cells.digest


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "too few"),
        (b"x" * 40, "begins with"),
        (Cells(unit(2, 2)).to_bytes()[:-1], "do not hold"),
        (Cells(unit(2, 2)).to_bytes() + b"\0", "do not hold"),
        (Cells(unit(2, 2)).to_bytes()[:-4] + b"\0\0\x80\x7f", "unit length"),  # infinity
    ],
)
def test_damaged_bytes_are_refused(data: bytes, said: str) -> None:
    with pytest.raises(CellsError, match=said):
        Cells.from_bytes(data)


@pytest.mark.parametrize("rows", [np.ones((2, 3), np.float32), unit(CELLS_MAX + 1, 1), np.eye(3)])
def test_what_is_no_set_of_centroids_is_refused(rows: NDArray[np.float32]) -> None:
    with pytest.raises(CellsError):
        Cells(rows)
