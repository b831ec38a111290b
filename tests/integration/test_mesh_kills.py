"""Random shard nodes die by SIGKILL or are stopped under traffic: no failed call at QUORUM, no lost write, every node
converges.

A few here; ten and more by `python -m tests.chaos.loopback --kills 10 --pauses 10 --seed N`.
"""

from __future__ import annotations

import pytest

from tests.chaos.loopback import TABLE, run
from tests.mesh import MakeMesh, Mesh

pytestmark = [pytest.mark.processes, pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def chaos_mesh(make_mesh: MakeMesh) -> Mesh:
    """A mesh whose nodes may die."""
    return make_mesh(TABLE)


async def test_kills_and_pauses(chaos_mesh: Mesh) -> None:
    assert await run(chaos_mesh, kills=3, pauses=2, seed=20_261_123) == []
