"""A node counts what its buckets hold, and how often it was searched."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from ostraka.v1 import shard_pb2, shard_pb2_grpc
from services.quorum.buckets import BUCKETS, bucket_of
from services.runtime.channel import open_channel
from services.runtime.clock import SYSTEM_CLOCK
from services.runtime.deadline import Deadline
from services.runtime.errors import DeadlineExceeded
from services.runtime.tls import Role
from services.shard import bucket_loads
from services.shard.cpu_budget import CpuBudget, StoppedError
from tests.integration.shard_nodes import (
    COLLECTION,
    ShardNode,
    eventually,
    gossip,
    nodes_config,
    now,
    search_request,
    write_request,
)
from tests.unit.shard_rows import DIM, batch

TIMEOUT_S = 10.0


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[ShardNode]:
    made = await ShardNode(nodes_config(tmp_path, nodes=1), "n1").start()
    yield made
    await made.stop()


async def loads(node: ShardNode, shard: int = 0) -> shard_pb2.BucketLoadsResponse:
    request = shard_pb2.BucketLoadsRequest(collection=COLLECTION, shard=shard)
    async with open_channel(node.config, node.address, server_role=Role.SHARD, identity="admin") as channel:
        return await shard_pb2_grpc.ShardServiceStub(channel).BucketLoads(request, timeout=TIMEOUT_S)


async def write(node: ShardNode, seq: int, documents: list[tuple[str, int]]) -> None:
    entry = batch(seq, documents)
    reply = await node.stub.Write(write_request(entry, now(entry)), timeout=TIMEOUT_S)
    assert reply.status == shard_pb2.REPLICA_STATUS_OK


async def test_rows_documents_and_searches(node: ShardNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bucket_loads, "HEADS_PER_STEP", 2)
    gossip(node)
    await eventually(lambda: node.replica.caught_up)
    await write(node, 1, [("a", 3), ("b", 2), ("c", 1), ("d", 1), ("e", 1)])
    await write(node, 2, [("b", 0), ("c", 4)])  # a tombstone and a replacement
    wanted = {"a": 3, "c": 4, "d": 1, "e": 1}
    found = await loads(node)
    rows, documents = [0] * BUCKETS, [0] * BUCKETS
    for document_id, passages in wanted.items():
        rows[bucket_of(document_id)] += passages
        documents[bucket_of(document_id)] += 1
    assert list(found.rows) == rows
    assert list(found.documents) == documents
    assert (found.replica, found.searches, found.row_bytes) == (node.replica.replica_id, 0, 2 * DIM)
    request = search_request(batch(1, [("a", 3)]))
    request.queries.append(request.queries[0])
    await node.stub.Search(request, timeout=TIMEOUT_S)
    again = await loads(node)
    assert again.searches == 2, "queries, not calls"
    assert again.counted_ms >= found.counted_ms


async def test_who_cannot_count_says_why(node: ShardNode) -> None:
    for shard, said in ((1, "not hosted here"), (0, "catching up")):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await loads(node, shard)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert said in str(caught.value.details())


async def test_counting_ends_when_nobody_waits(node: ShardNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bucket_loads, "HEADS_PER_STEP", 1)
    await write(node, 1, [("a", 1), ("b", 1)])
    assert node.replica.engine is not None
    readers, budget = node.replica.engine.readers, CpuBudget(1.0)
    with pytest.raises(DeadlineExceeded, match="counting"):
        await asyncio.to_thread(bucket_loads.count, readers, budget, Deadline.after_ms(-1, SYSTEM_CLOCK))
    budget.stop()
    with pytest.raises(StoppedError):
        await asyncio.to_thread(bucket_loads.count, readers, budget, Deadline.after_ms(60_000, SYSTEM_CLOCK))
