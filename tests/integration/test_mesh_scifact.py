"""Retrieval quality through the whole path: SciFact at QUORUM reaches the reference of exact search."""

from __future__ import annotations

import pytest

from benchmarks import datasets
from benchmarks.datasets import SciFact
from benchmarks.scifact import COLLECTION_TABLE, COSINE_MIN, NDCG_MIN, evaluate
from tests.mesh import MakeMesh, Mesh

pytestmark = [pytest.mark.processes, pytest.mark.slow]


@pytest.fixture
def scifact() -> SciFact:
    """The data set, where it is present."""
    try:
        return datasets.scifact()
    except datasets.DataAbsentError as absent:
        pytest.skip(str(absent))


@pytest.fixture
def scifact_mesh(scifact: SciFact, make_mesh: MakeMesh) -> Mesh:
    """A mesh with a collection for it; nothing is started without the data."""
    assert scifact.corpus
    return make_mesh(COLLECTION_TABLE.format(name="scifact"))


async def test_dense_ndcg_at_quorum(scifact: SciFact, scifact_mesh: Mesh) -> None:
    async with scifact_mesh.client("scifact") as client:
        found = await evaluate(client, scifact, prepared=True)
    print(found)
    assert found.cosine_min is not None
    assert found.cosine_min >= COSINE_MIN
    assert found.claims == 300
    assert found.ndcg_at_10 >= NDCG_MIN
