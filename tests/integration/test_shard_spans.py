"""What a shard says about a search in its own spans, and how it refuses what it cannot do in time."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from observability import names, spans
from ostraka.v1 import shard_pb2
from services.runtime.clock import SYSTEM_CLOCK
from services.runtime.deadline import Deadline
from services.runtime.errors import DeadlineExceeded
from services.shard.search_pool import PoolFullError, SearchPool
from tests.integration.shard_nodes import ShardNode, nodes_config, now, search_request, write_request
from tests.unit.shard_rows import batch

TIMEOUT_S = 10.0
PARENTS = [f"00-{number:032x}-{number:016x}-01" for number in (1, 2)]


@pytest.fixture
def exported() -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    spans.use_provider(provider)
    yield exporter
    spans.use_provider(None)


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[ShardNode]:
    made = await ShardNode(nodes_config(tmp_path, nodes=1), "n1").start()
    yield made
    await made.stop()


async def test_each_distinct_leg_has_one_search_span(node: ShardNode, exported: InMemorySpanExporter) -> None:
    entry = batch(1, [("a", 3)])
    await node.stub.Write(write_request(entry, now(entry)), timeout=TIMEOUT_S)
    request = search_request(entry)
    request.queries.extend([request.queries[0]] * 2)
    request.shards[0].traceparents.extend([PARENTS[0], PARENTS[1], PARENTS[0]])
    request.leg_role = "hedge"
    (leg,) = (await node.stub.Search(request, timeout=TIMEOUT_S)).shards
    assert len(leg.results) == 3
    found = [span for span in exported.get_finished_spans() if span.name == names.SPAN_SEARCH]
    assert {_parent(span) for span in found} == {1, 2}
    for span in found:
        attributes = dict(span.attributes or {})
        assert attributes[names.SHARD] == 0
        assert attributes[names.REPLICA] == leg.replica
        assert attributes[names.INDEX_EPOCH] == leg.index_epoch
        assert attributes[names.BATCH_SIZE] == 3
        assert attributes[names.ROWS_LIVE] == 3
        assert attributes[names.LEG_ROLE] == "hedge"


async def test_a_search_that_fails_still_ends_its_span(node: ShardNode, exported: InMemorySpanExporter) -> None:
    node.pool._taken = node.pool._places
    entry = batch(1, [("a", 1)])
    (leg,) = (await node.stub.Search(search_request(entry), timeout=TIMEOUT_S)).shards
    node.pool._taken = 0
    assert leg.status == shard_pb2.REPLICA_STATUS_OVERLOADED
    (found,) = [span for span in exported.get_finished_spans() if span.name == names.SPAN_SEARCH]
    assert dict(found.attributes or {})[names.OUTCOME] == "overloaded"


async def test_the_pool_is_bounded_and_begins_nothing_late() -> None:
    pool = SearchPool(1, 1, SYSTEM_CLOCK)
    gate, later = threading.Event(), Deadline.after_ms(60_000)
    running = asyncio.ensure_future(pool.run(lambda _: gate.wait(TIMEOUT_S), later))
    waiting = asyncio.ensure_future(pool.run(lambda wait_us: wait_us, later))
    await asyncio.sleep(0)
    with pytest.raises(PoolFullError):
        await pool.run(lambda _: None, later)
    gate.set()
    assert await running
    assert await waiting >= 0
    with pytest.raises(DeadlineExceeded):
        await pool.run(lambda _: None, Deadline.after_ms(0))
    pool.close()


async def test_a_read_only_replica_says_so_and_serves_reads(node: ShardNode) -> None:
    entry = batch(1, [("a", 1)])
    await node.stub.Write(write_request(entry, now(entry)), timeout=TIMEOUT_S)
    engine = node.replica.engine
    assert engine is not None
    pages = engine._database.rows("PRAGMA page_count")[0][0]
    engine._database.rows(f"PRAGMA max_page_count={pages}")
    big = batch(2, [("big", 200)])
    reply = await node.stub.Write(write_request(big, now(big)), timeout=TIMEOUT_S)
    assert reply.status == shard_pb2.REPLICA_STATUS_READ_ONLY
    (state,) = (await node.stub.NodeStatus(shard_pb2.NodeStatusRequest(), timeout=TIMEOUT_S)).replicas
    assert state.state == "READ_ONLY"
    assert "full" in state.message
    (leg,) = (await node.stub.Search(search_request(entry), timeout=TIMEOUT_S)).shards
    assert leg.results[0].hits[0].document_id == "a"


def _parent(span: ReadableSpan) -> int:
    assert span.parent is not None
    return span.parent.span_id
