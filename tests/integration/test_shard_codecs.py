"""Codecs between nodes over real TLS: one trains, all agree, the next one takes over, bad bytes are refused."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ostraka.v1 import shard_pb2
from services.quorum.gtid import GtidSet
from services.quorum.rows import WriteBatch
from services.runtime.config import Config
from services.runtime.config_sections import IndexKind
from services.shard import codec_service
from services.shard.codecs import CodecRecord, CodecStore
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

NODES = 3
ROWS_MIN = 600
PASSAGES = 100
SETTINGS = {"train_rows_min": ROWS_MIN, "delta_rows_flush": 300, "codec_exchange_ms": 60, "codec_owner_silent_ms": 400}


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return nodes_config(tmp_path, NODES, batch_rows_max=1_024, batch_bytes_max=1 << 20, **SETTINGS)


@pytest.fixture
async def trio(config: Config) -> AsyncIterator[list[ShardNode]]:
    nodes = [await ShardNode(config, f"n{number}").start() for number in range(1, NODES + 1)]
    yield nodes
    for node in nodes:
        if node.server is not None:
            await node.stop()


def store(node: ShardNode) -> CodecStore:
    return node.node.codecs.stores[COLLECTION]


def records(nodes: list[ShardNode]) -> list[CodecRecord | None]:
    return [store(node).record() for node in nodes]


async def ingest(node: ShardNode, first: int, count: int) -> list[WriteBatch]:
    """`count` documents of PASSAGES passages each, from number `first`, written to one node."""
    made = [batch(number, [(f"d{number}", PASSAGES)]) for number in range(first, first + count)]
    for entry in made:
        reply = await node.stub.Write(write_request(entry, now(entry)), timeout=10)
        assert reply.status == shard_pb2.REPLICA_STATUS_OK, reply
    return made


async def assert_found(nodes: list[ShardNode], written: list[WriteBatch]) -> None:
    """Every document's first passage is the best hit for its own vector, on every node once it has pulled them."""
    everything = GtidSet.of(*(entry.gtid for entry in written))
    await eventually(lambda: all(node.applied.issuperset(everything) for node in nodes))
    for node in nodes:
        for entry in written:
            reply = await node.stub.Search(search_request(entry, require=everything), timeout=10)
            (leg,) = reply.shards
            assert leg.status == shard_pb2.REPLICA_STATUS_OK, leg.message
            hit = leg.results[0].hits[0]
            assert (hit.document_id, hit.ordinal) == (entry.passages[0].document_id, 0)


def encoded(nodes: list[ShardNode], codec: CodecRecord | None) -> bool:
    """Whether every segment of every node is built with the codec, and index epochs say so."""
    views = [node.replica.engine.view for node in nodes if node.replica.engine is not None]
    return codec is not None and all(
        bool(view.parts)
        and {part.segment.manifest.codec for part in view.parts} == {codec.short}
        and view.index_epoch.startswith(f"{codec.short}-")
        for view in views
    )


def agreed(nodes: list[ShardNode], generation: int) -> bool:
    found = records(nodes)
    return len(set(found)) == 1 and found[0] is not None and found[0].generation == generation


async def test_one_node_trains_and_all_have_the_same_codec(trio: list[ShardNode]) -> None:
    gossip(*trio)
    written = await ingest(trio[1], 1, 7)
    await eventually(lambda: agreed(trio, 1))
    (record,) = set(records(trio))
    assert record is not None
    assert record.basis_rows >= ROWS_MIN
    assert [len(store(node).records()) for node in trio] == [1] * NODES, "nobody else trained"
    files = {(store(node).directory / f"{record.sha256}.faiss").read_bytes() for node in trio}
    assert len(files) == 1
    await eventually(lambda: encoded(trio, record))
    await assert_found(trio, written)


@pytest.mark.parametrize("kind", ["flat", "ivf-sq8", "binary-ivf", "hnsw"])
async def test_kinds_are_trained_shared_and_searched_alike(tmp_path: Path, kind: IndexKind) -> None:
    plain = nodes_config(tmp_path, 2, batch_rows_max=1_024, batch_bytes_max=1 << 20, **SETTINGS)
    collections = {name: replace(each, index=kind) for name, each in plain.collections.items()}
    config = replace(plain, collections=collections)
    nodes = [await ShardNode(config, f"n{number}").start() for number in (1, 2)]
    try:
        gossip(*nodes)
        written = await ingest(nodes[0], 1, 7)
        await eventually(lambda: nodes[0].applied == nodes[1].applied)
        if kind == "flat":
            await eventually(lambda: all(node.replica.engine and node.replica.engine.view.parts for node in nodes))
        else:
            await eventually(lambda: agreed(nodes, 1) and encoded(nodes, records(nodes)[0]))
        await assert_found(nodes, written)
    finally:
        for node in nodes:
            await node.stop()


async def test_the_next_node_trains_when_the_owner_is_dead(trio: list[ShardNode]) -> None:
    gossip(*trio)
    await eventually(lambda: all(node.replica.caught_up for node in trio))
    await trio[0].stop()
    trio[0].server = None
    written = await ingest(trio[1], 1, 7)
    await eventually(lambda: agreed(trio[1:], 1))
    await assert_found(trio[1:], written)


async def test_a_node_that_was_down_fetches_what_was_trained_meanwhile(config: Config) -> None:
    one, two = await ShardNode(config, "n1").start(), await ShardNode(config, "n2").start()
    gossip(one, two)
    await ingest(one, 1, 7)
    await eventually(lambda: agreed([one, two], 1))
    late = await ShardNode(config, "n3").start()
    late.node.start({each.name: each.address for each in (one, two, late)})
    try:
        await eventually(lambda: agreed([one, two, late], 1))
    finally:
        for node in (one, two, late):
            await node.stop()


async def test_growth_makes_the_next_generation_and_searches_stay_right(trio: list[ShardNode]) -> None:
    gossip(*trio)
    written = await ingest(trio[0], 1, 7)
    await eventually(lambda: agreed(trio, 1))
    first = records(trio)[0]
    written += await ingest(trio[1], 8, 9)
    await eventually(lambda: agreed(trio, 2))
    second = records(trio)[0]
    assert first is not None
    assert second is not None
    assert second.basis_rows > 2 * first.basis_rows
    await assert_found(trio, written)  # segments of both generations are searched
    await eventually(lambda: encoded(trio, second))
    await assert_found(trio, written)


async def test_corrupt_bytes_are_refused_and_the_sound_codec_is_taken_later(
    trio: list[ShardNode], monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = codec_service.codec_chunks
    spoiling = True

    async def spoiled(
        store: CodecStore | None, request: shard_pb2.GetCodecRequest
    ) -> AsyncIterator[shard_pb2.CodecChunk]:
        async for chunk in honest(store, request):
            if spoiling and chunk.data:
                data = bytearray(chunk.data)
                data[len(data) // 2] ^= 1
                chunk = shard_pb2.CodecChunk(data=bytes(data))
            yield chunk

    monkeypatch.setattr(codec_service, "codec_chunks", spoiled)
    gossip(*trio)
    await ingest(trio[0], 1, 7)
    await eventually(lambda: store(trio[0]).record() is not None)
    exchange = trio[1].node.codecs.exchange
    assert exchange is not None
    await eventually(lambda: (COLLECTION, "n1") in exchange.refused)
    assert records(trio[1:]) == [None, None]
    assert not list(store(trio[1]).directory.glob("*.faiss"))
    spoiling = False
    await eventually(lambda: agreed(trio, 1))


async def test_a_sample_is_drawn_evenly_and_without_damaged_rows(trio: list[ShardNode]) -> None:
    written = await ingest(trio[0], 1, 4)
    trio[0].replica.caught_up = True
    request = shard_pb2.SampleVectorsRequest(collection=COLLECTION, shard=0, rows=40)
    replies = [reply async for reply in codec_service.sample_chunks(trio[0].replica, request)]
    assert replies[0].rows_live == 4 * PASSAGES
    drawn = [np.frombuffer(reply.vectors_f16, dtype="<f2") for reply in replies]
    vectors = np.concatenate(drawn).reshape(40, -1)
    known = {row.vector: number for number, entry in enumerate(written) for row in entry.passages}
    by_document = np.bincount([known[vector.tobytes()] for vector in vectors])
    assert by_document.tolist() == [10, 10, 10, 10]
