"""`ostraka rebalance --plan` of a real mesh: what is measured is what is there, and the plan would even it out."""

from __future__ import annotations

import asyncio
import json
from itertools import count
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from ostraka.cli.main import app
from ostraka.client import Client
from ostraka.documents import NewDocument, NewPassage
from services.quorum.buckets import BUCKETS, bucket_of
from services.runtime import topology_file
from tests.mesh import MakeMesh, Mesh

pytestmark = [pytest.mark.processes, pytest.mark.timeout(600)]

DIM = 32
SEED = 20_261_124
TABLE = "".join(
    f"""
[collections.{name}]
shards = 2
replicas = 3
dim = {DIM}
embedding_model = "none of ours"
"""
    for name in ("skewed", "even")
)


async def run(mesh: Mesh, *arguments: str) -> Result:
    line = ["rebalance", *arguments, "--mesh-file", str(mesh.config.path)]
    return await asyncio.to_thread(CliRunner().invoke, app, line, env={"COLUMNS": "200"})


async def planned(mesh: Mesh, *arguments: str) -> dict[str, Any]:
    result = await run(mesh, "--plan", "--json", *arguments)
    assert result.exit_code == 0, result.output
    return {each["collection"]: each for each in json.loads(result.stdout)}


def named(bucket: int) -> str:
    """An id that falls into this bucket."""
    return next(name for name in (f"d{number}" for number in count()) if bucket_of(name) == bucket)


async def fill(client: Client, passages: dict[int, int]) -> None:
    """So many passages into each bucket."""
    rng = np.random.default_rng(SEED)

    def document(bucket: int, size: int) -> NewDocument:
        rows = rng.standard_normal((size, DIM)).astype(np.float32)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        return NewDocument(
            document_id=named(bucket),
            passages=[NewPassage(text=f"{bucket} {place}", vector=row) for place, row in enumerate(rows)],
        )

    await client.upsert(document(bucket, size) for bucket, size in passages.items())


async def test_a_skewed_collection_is_evened_out_on_paper(make_mesh: MakeMesh) -> None:
    mesh = await asyncio.to_thread(make_mesh, TABLE)
    owners = topology_file.load(mesh.config).collections["skewed"].buckets
    zero = [bucket for bucket in range(BUCKETS) if owners[bucket] == 0]
    one = next(bucket for bucket in range(BUCKETS) if owners[bucket] == 1)
    heavy = dict.fromkeys(zero[:10], 20) | {zero[10]: 3, one: 10}
    async with mesh.client("skewed") as client:
        await fill(client, heavy)
        query = np.ones(DIM, dtype=np.float32) / np.sqrt(np.float32(DIM))
        for _ in range(5):
            await client.search(query, k=3)
    async with mesh.client("even") as client:
        await fill(client, {zero[0]: 5, one: 5})

    made = await planned(mesh)
    assert made["even"]["balanced"]
    assert made["docs"]["balanced"], "nothing is in it"
    skewed = made["skewed"]
    assert not skewed["balanced"]
    assert [shard["rows"] for shard in skewed["shards"]] == [203, 10]
    assert all(shard["searches_per_s"] > 0 for shard in skewed["shards"])
    assert all(shard["replicas_asked"] == 3 for shard in skewed["shards"])
    rows = [203, 10]
    for move in skewed["moves"]:
        assert (move["source"], move["target"], move["rows"]) == (0, 1, heavy[move["bucket"]])
        assert f"bucket {move['bucket']} (" in move["why"]
        rows = [rows[0] - move["rows"], rows[1] + move["rows"]]
    assert rows == [shard["rows_planned"] for shard in skewed["shards"]]
    assert sum(rows) == 213
    assert skewed["imbalance"] > 1.3 >= skewed["imbalance_planned"]
    assert topology_file.load(mesh.config).collections["skewed"].buckets == owners, "a plan moves nothing"

    printed = await run(mesh, "--plan", "--collection", "even")
    assert printed.exit_code == 0
    assert "nothing needs to move" in printed.output
    assert "would move" not in printed.output
    printed = await run(mesh, "--plan", "--collection", "skewed", "--over", "0.1")
    assert "would move, in this order" in printed.output
    for given, said in ((("--plan", "-c", "absent"), "collections.absent"), ((), "say --plan")):
        refused = await run(mesh, *given)
        assert refused.exit_code == 2
        assert said in refused.output

    node = next(iter(mesh.config.nodes))
    await asyncio.to_thread(mesh.supervisor.kill, node)
    fewer = (await planned(mesh, "--collection", "skewed"))["skewed"]
    assert fewer["moves"], "other replicas know as much"
    for shard in fewer["shards"]:
        assert shard["replicas_asked"] == 2
        assert [reason.partition(":")[0] for reason in shard["silent"]] == [node]
    await asyncio.to_thread(mesh.supervisor.stop_all)
    down = await run(mesh, "--plan", "--timeout", "1")
    assert down.exit_code == 3
    assert "no replica of" in down.output
