"""A node's disk is lost and its replicas are replaced, in a mesh of real processes and by the commands alone."""

from __future__ import annotations

import asyncio
import json
import shutil

import pytest
from typer.testing import CliRunner

from ostraka import Consistency, NewDocument, NewPassage
from ostraka.cli.main import app
from tests.mesh import Mesh, eventually

pytestmark = pytest.mark.processes
TEXTS = [f"Lighthouse number {number} has {number + 2} steps." for number in range(8)]


def command(mesh: Mesh, *arguments: str) -> list[dict[str, object]]:
    """What `ostraka replica` printed, one object a line; it must succeed."""
    result = CliRunner().invoke(app, ["replica", *arguments, "--json", "--mesh-file", str(mesh.config.path)])
    assert result.exit_code == 0, result.output
    if arguments[0] == "list":
        found: list[dict[str, object]] = json.loads(result.output)
        return found
    return [json.loads(line) for line in result.output.splitlines()]


async def written(mesh: Mesh, texts: list[str]) -> None:
    documents = [NewDocument(document_id=f"lamp/{text.split()[2]}", passages=[NewPassage(text=text)]) for text in texts]
    async with mesh.client() as client:
        for write in (await client.upsert(documents, timeout_s=60)).documents:
            assert write.acknowledged, write


async def found(mesh: Mesh) -> list[str]:
    async with mesh.client() as client:
        hits = await client.search("lighthouse steps", k=20, consistency=Consistency.QUORUM, timeout_s=30)
        return sorted(hit.passage.text for hit in hits)


def test_a_lost_disk_is_replaced_shard_by_shard(own_mesh: Mesh) -> None:
    mesh = own_mesh
    asyncio.run(written(mesh, TEXTS[:4]))
    mesh.supervisor.kill("node-a")
    lost = [row for row in command(mesh, "list") if row["node"] == "node-a"]
    assert len(lost) == 2
    assert all(row["phase"] == "" for row in lost)
    for row in lost:
        shutil.rmtree(mesh.config.replica_dir("node-a", str(row["replica"])))
    mesh.supervisor.start("node-a")

    async def failed() -> bool:
        rows = await asyncio.to_thread(command, mesh, "list")
        return sum(row["phase"] == "FAILED" for row in rows) == 2

    asyncio.run(eventually(failed, what="both replicas of node-a are FAILED"))
    asyncio.run(written(mesh, TEXTS[4:6]))
    for number, row in enumerate(lost):
        done = command(mesh, "replace", str(row["replica"]), "--node", "node-a", "--dead")[-1]
        assert done["state"] == "active"
        # After the first, the shards are in different epochs, and one call asks for both.
        assert asyncio.run(found(mesh)) == sorted(TEXTS[: 6 + number])
        asyncio.run(written(mesh, TEXTS[6 + number : 7 + number]))
    asyncio.run(mesh.supervisor.wait_serving(["node-a"], 60))
    mesh.supervisor.kill("node-c")
    assert asyncio.run(found(mesh)) == sorted(TEXTS), "the new voters and node-b are a quorum"
    rows = command(mesh, "list")
    assert {str(row["replica"]) for row in rows}.isdisjoint(str(row["replica"]) for row in lost)
