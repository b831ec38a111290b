"""A mesh of real processes is copied while it runs, loses what came later, and answers as before from new replicas."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from ostraka.cli.main import app
from ostraka.client import Client
from ostraka.documents import NewDocument, NewPassage
from ostraka.results import Consistency
from tests.mesh import START_S, MakeMesh, Mesh

pytestmark = [pytest.mark.processes, pytest.mark.timeout(600)]

DIM = 32
DOCUMENTS = 120
SEED = 20_261_123
TABLE = f"""
[collections.vectors]
shards = 2
replicas = 3
dim = {DIM}
embedding_model = "none of ours"

[shard]
delta_rows_flush = 100
train_rows_min = 200
codec_exchange_ms = 300
"""


async def run(mesh: Mesh, *arguments: str) -> Result:
    """One command, in a thread: it has an event loop of its own."""
    line = ["snapshot", *arguments, "--mesh-file", str(mesh.config.path)]
    return await asyncio.to_thread(CliRunner().invoke, app, line, env={"COLUMNS": "200"})


async def done(mesh: Mesh, *arguments: str) -> Any:
    result = await run(mesh, *arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def unit(rng: np.random.Generator) -> np.ndarray[Any, np.dtype[np.float32]]:
    row = rng.standard_normal(DIM).astype(np.float32)
    return np.asarray(row / np.linalg.norm(row), dtype=np.float32)


def document(name: str, vector: np.ndarray[Any, np.dtype[np.float32]]) -> NewDocument:
    return NewDocument(document_id=name, passages=[NewPassage(text=name, vector=vector)])


async def found(client: Client, queries: list[np.ndarray[Any, np.dtype[np.float32]]]) -> list[list[tuple[str, float]]]:
    """Ids and scores of the best ten, read from a quorum."""
    results = await client.search_batch(queries, k=10, consistency=Consistency.QUORUM)
    return [[(hit.passage.passage_id, hit.score) for hit in result.hits] for result in results]


async def replica_ids(client: Client) -> set[str]:
    status = await client.status()
    return {replica.replica for node in status.nodes for replica in node.replicas if replica.collection == "vectors"}


async def test_a_mesh_comes_back_from_a_snapshot(make_mesh: MakeMesh, tmp_path: Path) -> None:
    mesh = await asyncio.to_thread(make_mesh, TABLE)
    place = str(tmp_path / "snapshots")
    rng = np.random.default_rng(SEED)
    queries = [unit(rng) for _ in range(20)]
    async with mesh.client("vectors") as client:
        await client.upsert(
            NewDocument(
                document_id=f"d{number}",
                passages=[NewPassage(text=f"d{number} {part}", vector=unit(rng)) for part in range(5)],
            )
            for number in range(DOCUMENTS)
        )
        expected = await found(client, queries)
        before = await replica_ids(client)
        made = await done(mesh, "create", place, "--name", "first", "--collection", "vectors")
        assert (made["name"], made["rows"]) == ("first", DOCUMENTS * 5)
        await client.upsert([document("later", queries[0])])
        assert (await found(client, queries))[0][0][0].startswith("later")
    refused = await run(mesh, "restore", place, "first")
    assert refused.exit_code == 2
    assert "the mesh runs" in refused.output
    assert (await done(mesh, "verify", place, "first"))["bytes"] == made["bytes"]
    assert [(each["name"], each["problem"]) for each in await done(mesh, "list", place)] == [("first", "")]

    await asyncio.to_thread(mesh.supervisor.stop_all)
    restored = await done(mesh, "restore", place, "first")
    assert (restored["replicas"], restored["rows_live"], len(restored["set_aside"])) == (6, DOCUMENTS * 5, 6)
    await asyncio.to_thread(mesh.supervisor.start_all)
    await mesh.supervisor.wait_serving(timeout_s=START_S)
    async with mesh.client("vectors") as client:
        assert await found(client, queries) == expected
        after = await replica_ids(client)
        assert len(after) == 6
        assert not after & before, "a replica never comes back under its own id"
        await client.upsert([document("new", queries[1])])
        assert (await found(client, queries))[1][0][0].startswith("new")
