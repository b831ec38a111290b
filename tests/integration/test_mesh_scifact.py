"""Retrieval quality through the whole path: SciFact at QUORUM reaches its references in every mode."""

from __future__ import annotations

import pytest

from benchmarks import datasets
from benchmarks.datasets import Judged
from benchmarks.quality import evaluate
from benchmarks.scifact import COLLECTION_TABLE, COSINE_MIN, LEAST
from tests.mesh import MakeMesh, Mesh

pytestmark = [pytest.mark.processes, pytest.mark.slow]


@pytest.fixture
def scifact() -> Judged:
    """The data set, where it is present."""
    try:
        return datasets.scifact()
    except datasets.DataAbsentError as absent:
        pytest.skip(str(absent))


@pytest.fixture
def scifact_mesh(scifact: Judged, make_mesh: MakeMesh) -> Mesh:
    """A mesh with a collection for it; nothing is started without the data."""
    assert scifact.corpus
    return make_mesh(COLLECTION_TABLE.format(name="scifact"))


async def test_every_mode_reaches_its_reference_at_quorum(scifact: Judged, scifact_mesh: Mesh) -> None:
    async with scifact_mesh.client("scifact") as client:
        found = await evaluate(client, scifact, tuple(LEAST), prepared=True)
    print(found)
    assert found.cosine_min is not None
    assert found.cosine_min >= COSINE_MIN
    assert found.queries == 300
    assert {mode: found.ndcg_at_10[mode] >= least for mode, least in LEAST.items()} == dict.fromkeys(LEAST, True)
