"""A node measures itself while it is idle, and says so in its status and in a scrape."""

from __future__ import annotations

import asyncio
import socket
import urllib.request
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from observability import metrics_export
from observability.metrics_export import MetricsSettings
from ostraka.v1 import shard_pb2
from services.runtime.clock import SYSTEM_CLOCK
from services.shard.introspection import Introspection
from services.shard.measures import Measures
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
from tests.unit.shard_rows import batch

TIMEOUT_S = 10.0


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[ShardNode]:
    made = await ShardNode(nodes_config(tmp_path, nodes=1), "n1").start()
    yield made
    await made.stop()


@pytest.fixture
def port() -> Iterator[int]:
    """A scrape endpoint that is closed afterwards."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free = int(probe.getsockname()[1])
    metrics_export.configure(MetricsSettings("shard", "n1", "0.1.0", scrape_port=free))
    yield free
    metrics_export.shutdown()


def introspection_of(node: ShardNode, *, idle: bool = True) -> Introspection:
    return Introspection(node.node.replicas.values(), node.node.codecs.stores, lambda: idle, SYSTEM_CLOCK)


async def fill_and_search(node: ShardNode, searches: int) -> None:
    entry = batch(1, [("a", 3), ("b", 2)])
    reply = await node.stub.Write(write_request(entry, now(entry)), timeout=TIMEOUT_S)
    assert reply.status == shard_pb2.REPLICA_STATUS_OK
    for _ in range(searches):
        await node.stub.Search(search_request(entry), timeout=TIMEOUT_S)


async def status(node: ShardNode) -> shard_pb2.ReplicaState:
    reply = await node.stub.NodeStatus(shard_pb2.NodeStatusRequest(), timeout=TIMEOUT_S)
    (state,) = reply.replicas
    assert reply.resident_bytes > 0
    return state


def scrape(port: int) -> dict[str, list[tuple[dict[str, str], float]]]:
    """Samples by name, as Prometheus's own parser reads them."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=TIMEOUT_S) as reply:
        text = reply.read().decode()
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((dict(sample.labels), sample.value))
    return found


async def test_live_queries_are_measured_in_idle_time(node: ShardNode) -> None:
    await fill_and_search(node, searches=3)
    assert (await status(node)).health.canary_queries == 0
    await asyncio.to_thread(introspection_of(node, idle=False).round)
    assert (await status(node)).health.canary_queries == 0, "a busy node measures nothing"
    measuring = introspection_of(node)
    for _ in range(3):
        await asyncio.to_thread(measuring.round)
    state = await status(node)
    assert (state.health.recall_canary, state.health.canary_queries) == (1.0, 3)
    assert node.replica.engine is not None
    assert node.replica.canary is not None
    assert not node.replica.canary.due(node.replica.engine.view)


async def test_exact_and_filtered_searches_are_not_sampled(node: ShardNode) -> None:
    await fill_and_search(node, searches=0)
    request = search_request(batch(1, [("a", 3)]))
    request.exact = True
    await node.stub.Search(request, timeout=TIMEOUT_S)
    assert node.replica.engine is not None
    assert node.replica.canary is not None
    assert not node.replica.canary.due(node.replica.engine.view)


async def test_memory_is_told_by_part(node: ShardNode) -> None:
    await fill_and_search(node, searches=1)
    parts = {part.part: part for part in (await status(node)).memory}
    assert parts.keys() >= {"delta", "lexical delta", "alive", "index", "database caches", "filters", "statistics"}
    assert parts["delta"].bytes > 0
    assert parts["database caches"].bytes > 0
    assert [part for part in parts.values() if part.mapped] == [parts["segment files"]]


async def test_a_scrape_tells_what_the_status_tells(node: ShardNode, port: int) -> None:
    measures = Measures(node.node, SYSTEM_CLOCK)
    try:
        await fill_and_search(node, searches=2)
        await asyncio.to_thread(introspection_of(node).round)
        found = await asyncio.to_thread(scrape, port)
        state = await status(node)
    finally:
        measures.close()
    whose = {"collection": COLLECTION, "shard": "0", "replica": node.replica.replica_id[:8]}
    rows = {labels["state"]: value for labels, value in found["ostraka_replica_rows"]}
    assert rows == {"live": state.rows_live, "dead": state.rows_dead} == {"live": 5, "dead": 0}
    assert all(labels.items() >= whose.items() for labels, _ in found["ostraka_replica_rows"])
    assert [value for _, value in found["ostraka_replica_recall_canary"]] == [1.0]
    told = {labels["part"] for labels, _ in found["ostraka_replica_memory_bytes"]}
    assert told == {part.part for part in state.memory}
    assert [value for _, value in found["ostraka_shard_queue_wait_seconds_count"]] == [2]
    (searched, _) = found["ostraka_shard_search_duration_seconds_count"][0]
    assert (searched["collection"], searched["mode"]) == (COLLECTION, "dense")
    writes = {labels["status"]: value for labels, value in found["ostraka_shard_writes_total"]}
    assert writes["ok"] == 1
    assert "ostraka_replica_rows" not in await asyncio.to_thread(scrape, port)


async def test_a_sealed_segment_and_its_codec_are_told(tmp_path: Path) -> None:
    config = nodes_config(
        tmp_path, 1, batch_rows_max=1_024, batch_bytes_max=1 << 20,
        train_rows_min=600, delta_rows_flush=300, codec_exchange_ms=60,
    )  # fmt: skip
    node = await ShardNode(config, "n1").start()
    gossip(node)
    try:
        entries = [batch(number, [(f"d{number}", 100)]) for number in range(1, 8)]
        for entry in entries:
            assert (await node.stub.Write(write_request(entry, now(entry)), timeout=TIMEOUT_S)).status
        engine, codecs = node.replica.engine, node.node.codecs.stores[COLLECTION]
        assert engine is not None
        await eventually(lambda: bool(engine.view.parts) and codecs.record() is not None)
        last = batch(8, [("late", 300 - 1)])
        await node.stub.Write(write_request(last, now(last)), timeout=TIMEOUT_S)
        for entry in entries:
            await node.stub.Search(search_request(entry), timeout=TIMEOUT_S)
        thread = introspection_of(node)
        thread.start()
        await asyncio.to_thread(thread.stop)
        for _ in entries:
            await asyncio.to_thread(introspection_of(node).round)
        state = await status(node)
    finally:
        await node.stop()
    record = codecs.record()
    assert record is not None
    assert state.health.codec.generation == record.generation
    assert state.health.builds >= 1
    assert state.health.canary_queries == len(entries)
    assert state.health.recall_canary >= 0.9
    assert state.segments
    assert all(segment.list_imbalance >= 1.0 for segment in state.segments if "IVF" in segment.index_kind)
    assert all(0 < segment.recall <= 1 for segment in state.segments)
    parts = {part.part: part.bytes for part in state.memory}
    assert parts["segment files"] > 0
    assert parts["alive"] > 0
    if state.delta_rows >= 256:  # else the background has sealed the newest rows already
        assert state.health.quantization_error > 0
        assert state.health.quantization_error_basis == record.error_basis


async def test_a_defect_in_measuring_ends_nothing(node: ShardNode, monkeypatch: pytest.MonkeyPatch) -> None:
    measuring = introspection_of(node)
    tried = asyncio.Event()
    loop = asyncio.get_running_loop()

    def broken() -> None:
        loop.call_soon_threadsafe(tried.set)
        raise RuntimeError("a defect")

    monkeypatch.setattr(measuring, "round", broken)
    measuring.start()
    await asyncio.wait_for(tried.wait(), TIMEOUT_S)
    await asyncio.to_thread(measuring.stop)
    await fill_and_search(node, searches=1)
