"""Search by words over real TLS: modes, refusals, and statistics that nodes tell each other."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from ostraka.v1 import passage_pb2, shard_pb2, shard_pb2_grpc
from services.runtime import topology_file
from services.runtime.channel import open_channel
from services.runtime.config import Config, parse
from services.runtime.tls import Role, dev_certificates
from services.shard import search
from services.shard.lexical_view import lexical_parts
from services.shard.statistics import Vocabulary, vocabulary
from services.shard.statistics_service import Received
from services.shard.wire import WireError
from tests.integration.shard_nodes import COLLECTION, ShardNode, eventually, gossip, nodes_config, now, write_request
from tests.unit.shard_rows import DIM, vector
from tests.unit.test_shard_lexical import texts, worded

TIMEOUT_S = 10.0
OK = shard_pb2.REPLICA_STATUS_OK


def two_shards(directory: Path, **shard: Any) -> Config:
    """Two nodes, each with the only replica of one of two shards."""
    raw = {
        "mesh": {"drain_s": 1.0},
        "shard": {"disk_reserve_bytes": 0, "gossip_ms": 30, "lexical_statistics_ms": 20, **shard},
        "nodes": {"n1": {"address": "127.0.0.1:1"}, "n2": {"address": "127.0.0.1:2"}},
        "collections": {
            COLLECTION: {"shards": 2, "replicas": 1, "read_quorum": 1, "write_quorum": 1, "dim": DIM},
        },
    }
    config = parse(raw, directory / "mesh.toml", {})
    dev_certificates(config)
    topology_file.bootstrap(config)
    return config


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[ShardNode]:
    made = await ShardNode(nodes_config(tmp_path, nodes=1), "n1").start()
    yield made
    await made.stop()


@pytest.fixture
async def halves(tmp_path: Path) -> AsyncIterator[tuple[ShardNode, ShardNode]]:
    config = two_shards(tmp_path)
    one, two = await ShardNode(config, "n1").start(), await ShardNode(config, "n2").start()
    yield one, two
    await one.stop()
    await two.stop()


def shard_of(node: ShardNode) -> int:
    ((_, shard),) = node.node.replicas
    return shard


def asked(
    *queries: str, mode: passage_pb2.SearchMode.ValueType = search.LEXICAL, shard: int = 0, k: int = 5
) -> shard_pb2.SearchShardsRequest:
    request = shard_pb2.SearchShardsRequest(
        epoch=1, collection=COLLECTION, shards=[shard_pb2.ShardSearch(shard=shard)], k=k, mode=mode
    )
    for text in queries:
        query = request.queries.add(text=text)
        if mode != search.LEXICAL:
            data = np.frombuffer(vector(7), dtype="<f2").astype("<f4")
            query.vector.CopyFrom(passage_pb2.Vector(dim=DIM, data=(data / np.linalg.norm(data)).tobytes()))
    return request


async def write(node: ShardNode, step: int, documents: Mapping[str, Sequence[str]], shard: int = 0) -> None:
    entry = worded(step, documents)
    request = write_request(entry, now(entry))
    request.shard = shard
    assert (await node.stub.Write(request, timeout=TIMEOUT_S)).status == OK


async def leg(node: ShardNode, request: shard_pb2.SearchShardsRequest) -> shard_pb2.ShardSearchResult:
    (found,) = (await node.stub.Search(request, timeout=TIMEOUT_S)).shards
    assert found.status == OK, found.message
    return found


async def test_an_acknowledged_row_is_in_the_very_next_search_by_words(node: ShardNode) -> None:
    for step in range(1, 30):
        await write(node, step, {f"d{step}": [f"common word{step}", "filler"]})
        found = await leg(node, asked(f"word{step}", "common", k=40))
        assert [hit.document_id for hit in found.results[0].lexical_hits] == [f"d{step}"]
        assert len(found.results[1].lexical_hits) == step
        assert not found.results[0].hits


async def test_modes_answer_as_the_contract_says(node: ShardNode) -> None:
    await write(node, 1, {f"d{n}": [text] for n, text in enumerate(texts(1, 20))})
    both = (await leg(node, asked("mesh codec", mode=search.HYBRID))).results[0]
    assert len(both.hits) == 5
    assert 1 <= len(both.lexical_hits) <= 5
    staged = (await leg(node, asked("mesh codec", mode=search.TWO_STAGE, k=20))).results[0]
    assert len(staged.hits) == 20
    words = {
        hit.document_id: hit.lexical_score
        for hit in (await leg(node, asked("mesh codec", k=20))).results[0].lexical_hits
    }
    assert {hit.document_id: hit.lexical_score for hit in staged.hits if hit.lexical_score} == words
    dense = (await leg(node, asked("mesh codec", mode=search.DENSE))).results[0]
    assert [hit.document_id for hit in dense.hits] == [hit.document_id for hit in both.hits]
    assert not dense.lexical_hits


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda request: setattr(request.queries[0], "text", ""), "queries[0].text"),
        (lambda request: setattr(request.queries[0], "text", "x" * 65_537), "queries[0].text"),
        (lambda request: request.queries[0].vector.CopyFrom(passage_pb2.Vector(dim=1)), "queries[0].vector"),
        (lambda request: setattr(request, "mode", 99), "mode"),
        (lambda request: setattr(request, "mode", search.HYBRID), "queries[0].vector"),
        (lambda request: setattr(request, "k", 0), "k"),
        (lambda request: request.ClearField("queries"), "queries"),
    ],
)
async def test_a_request_that_makes_no_sense_names_the_field(node: ShardNode, change: Any, field: str) -> None:
    request = asked("mesh")
    change(request)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await node.stub.Search(request, timeout=TIMEOUT_S)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert field in str(caught.value.details())


async def test_a_text_of_the_greatest_length_and_one_without_terms_are_fine(node: ShardNode) -> None:
    await write(node, 1, {"a": ["mesh"]})
    found = await leg(node, asked("mesh " * 13_000, "the of and", "\u2603"))
    assert [len(result.lexical_hits) for result in found.results] == [1, 0, 0]


async def test_two_nodes_score_as_one_corpus_once_they_have_heard_each_other(
    halves: tuple[ShardNode, ShardNode], tmp_path: Path
) -> None:
    one, two = halves
    here, there = texts(1, 40), texts(2, 15)
    await write(one, 1, {f"a{n}": [text] for n, text in enumerate(here)}, shard_of(one))
    await write(two, 1, {f"b{n}": [text] for n, text in enumerate(there)}, shard_of(two))
    alone = await leg(one, asked("mesh codec", shard=shard_of(one), k=60))
    gossip(one, two)
    await eventually(lambda: (COLLECTION, shard_of(two)) in one.node.statistics.heard)
    await eventually(lambda: (COLLECTION, shard_of(one)) in two.node.statistics.heard)
    scores: dict[str, float] = {}
    for node in halves:
        found = await leg(node, asked("mesh codec", shard=shard_of(node), k=60))
        assert found.statistics_age_ms < 10_000
        scores |= {hit.document_id: hit.lexical_score for hit in found.results[0].lexical_hits}
    assert scores[alone.results[0].lexical_hits[0].document_id] != alone.results[0].lexical_hits[0].lexical_score

    whole = await ShardNode(nodes_config(tmp_path / "whole", nodes=1), "n1").start()
    try:
        await write(whole, 1, {f"a{n}": [text] for n, text in enumerate(here)})
        await write(whole, 2, {f"b{n}": [text] for n, text in enumerate(there)})
        expected = await leg(whole, asked("mesh codec", k=60))
        assert {hit.document_id: hit.lexical_score for hit in expected.results[0].lexical_hits} == scores
    finally:
        await whole.stop()


async def test_what_changed_is_fetched_again_and_what_did_not_is_only_confirmed(
    halves: tuple[ShardNode, ShardNode],
) -> None:
    one, two = halves
    await write(two, 1, {"b": ["mesh"]}, shard_of(two))
    gossip(one, two)
    key = (COLLECTION, shard_of(two))
    heard = one.node.statistics.heard
    await eventually(lambda: key in heard and heard[key].vocabulary.passages == 1)
    first = heard[key]
    await eventually(lambda: heard[key].at_s > first.at_s)
    assert heard[key].vocabulary is first.vocabulary
    await write(two, 2, {"c": ["mesh mesh quorum"]}, shard_of(two))
    await eventually(lambda: heard[key].vocabulary.passages == 2)
    assert heard[key].vocabulary.tokens == 4


async def test_statistics_of_a_node_that_went_away_stay_in_use_and_grow_old(tmp_path: Path) -> None:
    config = two_shards(tmp_path)
    one, two = await ShardNode(config, "n1").start(), await ShardNode(config, "n2").start()
    stopped = False
    try:
        await write(one, 1, {"a": ["mesh quorum"]}, shard_of(one))
        await write(two, 1, {f"b{n}": ["mesh"] for n in range(5)}, shard_of(two))
        gossip(one, two)
        key = (COLLECTION, shard_of(two))
        heard = one.node.statistics.heard
        await eventually(lambda: key in heard)
        before = await leg(one, asked("mesh", shard=shard_of(one)))
        await two.stop()
        stopped = True
        old = heard[key]
        await eventually(lambda: one.node.statistics.heard_age_ms(key) > 100)
        after = await leg(one, asked("mesh", shard=shard_of(one)))
        assert heard[key] is old
        assert after.results == before.results
        assert after.statistics_age_ms > 100
    finally:
        await one.stop()
        if not stopped:
            await two.stop()


async def test_a_replica_of_the_other_shard_on_the_same_node_is_looked_into_directly(tmp_path: Path) -> None:
    raw = {
        "mesh": {"drain_s": 1.0},
        "shard": {"disk_reserve_bytes": 0},
        "nodes": {"n1": {"address": "127.0.0.1:1"}},
        "collections": {COLLECTION: {"shards": 2, "replicas": 1, "read_quorum": 1, "write_quorum": 1, "dim": DIM}},
    }
    config = parse(raw, tmp_path / "mesh.toml", {})
    dev_certificates(config)
    topology_file.bootstrap(config)
    node = await ShardNode(config, "n1").start()
    try:
        gossip(node)
        await eventually(lambda: all(replica.caught_up for replica in node.node.replicas.values()))
        await write(node, 1, {"a": ["mesh quorum"]}, 0)
        before = (await leg(node, asked("mesh", shard=0))).results[0].lexical_hits[0].lexical_score
        await write(node, 1, {f"b{n}": ["codec"] for n in range(9)}, 1)
        found = await leg(node, asked("mesh", shard=0))
        assert found.results[0].lexical_hits[0].lexical_score > before, "rarer among ten than alone"
        assert found.statistics_age_ms == 0
    finally:
        await node.stop()


async def test_only_shards_may_ask_for_statistics_and_large_ones_come_in_pieces(
    halves: tuple[ShardNode, ShardNode], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = halves
    monkeypatch.setattr("services.shard.statistics_service.TERMS_PER_MESSAGE", 3)
    await write(one, 1, {"a": ["mesh shard quorum replica vector segment posting bitmap"]}, shard_of(one))
    request = shard_pb2.StatisticsRequest(collection=COLLECTION, shard=shard_of(one))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await anext(aiter(one.stub.Statistics(request, timeout=TIMEOUT_S)))
    assert refused.value.code() == grpc.StatusCode.PERMISSION_DENIED
    gossip(one, two)
    await eventually(lambda: all(replica.caught_up for replica in one.node.replicas.values()))
    channel = open_channel(one.config, one.address, server_role=Role.SHARD, identity="n2")
    async with channel:
        stub: shard_pb2_grpc.ShardServiceAsyncStub = shard_pb2_grpc.ShardServiceStub(channel)
        pieces = [piece async for piece in stub.Statistics(request, timeout=TIMEOUT_S)]
        assert [len(piece.terms) for piece in pieces] == [0, 3, 3, 2]
        received = Received(pieces[0], "english-1")
        for piece in pieces[1:]:
            received.add(piece)
        stamp, found = received.whole()
        engine = one.node.replicas[COLLECTION, shard_of(one)].engine
        assert engine is not None
        assert same(found, vocabulary(lexical_parts(engine.view)))
        request.have_stamp = stamp
        again = [piece async for piece in stub.Statistics(request, timeout=TIMEOUT_S)]
        assert [piece.stamp for piece in again] == [stamp]
        request.shard = 9
        with pytest.raises(grpc.aio.AioRpcError) as absent:
            await anext(aiter(stub.Statistics(request, timeout=TIMEOUT_S)))
        assert absent.value.code() == grpc.StatusCode.UNAVAILABLE


def same(left: Vocabulary, right: Vocabulary) -> bool:
    return (left.passages, left.tokens, left.terms.tolist(), left.frequencies.tolist()) == (
        right.passages,
        right.tokens,
        right.terms.tolist(),
        right.frequencies.tolist(),
    )


@pytest.mark.parametrize(
    ("first", "piece", "field"),
    [
        ({"analyzer": "none-1"}, {}, "analyzer"),
        ({"analyzer": "english-1"}, {"terms": [1, 2], "document_frequencies": [1]}, "document_frequencies"),
        ({"analyzer": "english-1", "passages": 5}, {"terms": [2, 1], "document_frequencies": [1, 1]}, "terms"),
        ({"analyzer": "english-1", "passages": 1}, {"terms": [1], "document_frequencies": [2]}, "document_frequencies"),
    ],
)
def test_statistics_that_no_replica_sends_are_refused(first: Any, piece: Any, field: str) -> None:
    def receive() -> None:
        received = Received(shard_pb2.StatisticsResponse(**first), "english-1")
        received.add(shard_pb2.StatisticsResponse(**piece))
        received.whole()

    with pytest.raises(WireError) as refused:
        receive()
    assert refused.value.field == field
