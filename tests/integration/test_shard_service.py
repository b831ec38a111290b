"""The ShardService over real TLS: one node's answers, and two nodes repairing each other."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import grpc
import pytest

from ostraka.v1 import passage_pb2, shard_pb2
from services.quorum.gtid import Gtid, GtidSet
from services.quorum.status import ReplicaStatus
from services.runtime import topology_file
from services.shard.engine import DATABASE_FILE
from services.shard.store import Database
from services.shard.wire import status_to_wire
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
from tests.unit.shard_rows import SOURCE, batch

TIMEOUT_S = 10.0
OK = shard_pb2.REPLICA_STATUS_OK


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[ShardNode]:
    made = await ShardNode(nodes_config(tmp_path, nodes=1), "n1").start()
    yield made
    await made.stop()


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[tuple[ShardNode, ShardNode]]:
    config = nodes_config(tmp_path)
    one, two = await ShardNode(config, "n1").start(), await ShardNode(config, "n2").start()
    yield one, two
    await one.stop()
    await two.stop()


async def test_a_write_is_found_with_its_provenance(node: ShardNode) -> None:
    entry = batch(1, [("a", 3), ("b", 2)])
    at = now(entry)
    written = await node.stub.Write(write_request(entry, at), timeout=TIMEOUT_S)
    assert (written.status, written.replica, written.hlc_max) == (OK, node.replica.replica_id, at.hlc)
    found = await node.stub.Search(search_request(entry), timeout=TIMEOUT_S)
    (leg,) = found.shards
    assert (found.node, leg.status, leg.replica) == ("n1", OK, node.replica.replica_id)
    assert (leg.rows_live, leg.rows_dead, leg.waited) == (5, 0, False)
    hit = leg.results[0].hits[0]
    assert (hit.document_id, hit.ordinal, hit.version.hlc) == ("a", 0, at.hlc)
    assert (hit.index_part, hit.index_kind) == ("delta", "flat")
    assert hit.score == pytest.approx(1.0, abs=1e-3)
    assert passage_pb2.Passage.FromString(hit.payload).text.startswith("a#0")
    assert leg.index_epoch == f"flat-{GtidSet.of(entry.gtid).digest().hex()[:8]}"
    summary = (await node.stub.Summary(shard_pb2.SummaryRequest(epoch=1, collection=COLLECTION))).summaries[0]
    assert (summary.status, summary.applied, summary.hlc_max) == (OK, leg.view, at.hlc)


async def test_documents_are_read_whole_tombstones_included(node: ShardNode) -> None:
    first, second = batch(1, [("a", 3), ("b", 1)]), batch(2, [("b", 0)])
    for entry in (first, second):
        await node.stub.Write(write_request(entry, now(entry)), timeout=TIMEOUT_S)
    request = shard_pb2.GetDocumentsRequest(
        epoch=1, collection=COLLECTION, document_ids=["a", "b", "none"], include_vectors=True
    )
    reply = await node.stub.GetDocuments(request, timeout=TIMEOUT_S)
    assert reply.status == OK
    assert [(entry.head.document_id, entry.head.passages) for entry in reply.documents] == [("a", 3), ("b", 0)]
    assert [row.vector_f16 for row in reply.documents[0].passages] == [row.vector for row in first.passages[:3]]


def _long_id(request: shard_pb2.WriteRequest) -> None:
    request.passages[0].document_id = "x" * 513


def _control(request: shard_pb2.WriteRequest) -> None:
    request.heads[0].document_id = "a\nb"


def _short_vector(request: shard_pb2.WriteRequest) -> None:
    request.passages[1].vector_f16 = request.passages[1].vector_f16[:-2]


def _zero_vector(request: shard_pb2.WriteRequest) -> None:
    request.passages[1].vector_f16 = bytes(len(request.passages[1].vector_f16))


def _nan_vector(request: shard_pb2.WriteRequest) -> None:
    request.passages[0].vector_f16 = b"\x00\x7e" * (len(request.passages[0].vector_f16) // 2)


def _payload(request: shard_pb2.WriteRequest) -> None:
    request.passages[1].payload = b"\xff\xff"


def _other_payload(request: shard_pb2.WriteRequest) -> None:
    request.passages[1].payload = request.passages[0].payload


def _rows(request: shard_pb2.WriteRequest) -> None:
    for number in range(300):
        request.heads.add(document_id=f"d{number}")


def _bytes(request: shard_pb2.WriteRequest) -> None:
    request.passages[0].payload = passage_pb2.Passage(text="x" * (1 << 20)).SerializeToString()


def _twice(request: shard_pb2.WriteRequest) -> None:
    request.passages[1].CopyFrom(request.passages[0])


def _seq(request: shard_pb2.WriteRequest) -> None:
    request.gtid.seq = 0


def _empty(request: shard_pb2.WriteRequest) -> None:
    request.ClearField("passages")
    request.ClearField("heads")


def _depends(request: shard_pb2.WriteRequest) -> None:
    request.depends.sources.add(source=1, bounds=[5, 2])


@pytest.mark.parametrize(
    ("spoil", "field"),
    [
        (_long_id, "passages[0].document_id"),
        (_control, "heads[0].document_id"),
        (_short_vector, "passages[1].vector_f16"),
        (_zero_vector, "passages[1].vector_f16"),
        (_nan_vector, "passages[0].vector_f16"),
        (_payload, "passages[1].payload"),
        (_other_payload, "passages[1].payload"),
        (_rows, "passages: a batch holds 1 to 256 rows"),
        (_bytes, "passages: a batch holds at most"),
        (_twice, "passages[1].ordinal"),
        (_seq, "gtid.seq"),
        (_empty, "passages"),
        (_depends, "depends"),
    ],
)
async def test_a_bad_batch_is_refused_by_field(
    node: ShardNode, spoil: Callable[[shard_pb2.WriteRequest], None], field: str
) -> None:
    entry = batch(1, [("a", 2)])
    request = write_request(entry, now(entry))
    spoil(request)
    reply = await node.stub.Write(request, timeout=TIMEOUT_S)
    assert reply.status == shard_pb2.REPLICA_STATUS_INVALID
    assert field in reply.message
    assert not node.applied


async def test_a_gtid_is_never_used_for_other_content(node: ShardNode) -> None:
    entry = batch(1, [("a", 2)])
    at = now(entry)
    request = write_request(entry, at)
    for _ in range(2):
        assert (await node.stub.Write(request, timeout=TIMEOUT_S)).status == OK
    for other in (batch(1, [("a", 2)], seed=5), batch(1, [("b", 2)]), batch(1, [("a", 1)])):
        reply = await node.stub.Write(write_request(other, at), timeout=TIMEOUT_S)
        assert reply.status == shard_pb2.REPLICA_STATUS_INVALID
        assert "gtid" in reply.message


async def test_statuses_of_what_is_not_there(node: ShardNode) -> None:
    entry = batch(1, [("a", 1)])
    stale = await node.stub.Write(write_request(entry, now(entry), epoch=0), timeout=TIMEOUT_S)
    assert stale.status == shard_pb2.REPLICA_STATUS_STALE_EPOCH
    later = await node.stub.Write(write_request(entry, now(entry), epoch=2), timeout=TIMEOUT_S)
    assert later.status == shard_pb2.REPLICA_STATUS_STALE_TOPOLOGY
    needs = replace(entry, depends=GtidSet.of(Gtid(SOURCE, 9)))
    missing = await node.stub.Write(write_request(needs, now(entry)), timeout=TIMEOUT_S)
    assert missing.status == shard_pb2.REPLICA_STATUS_MISSING_DEPENDENCY
    request = search_request(entry)
    request.shards[0].shard = 7
    (leg,) = (await node.stub.Search(request, timeout=TIMEOUT_S)).shards
    assert leg.status == shard_pb2.REPLICA_STATUS_UNKNOWN_REPLICA
    request = search_request(entry)
    request.epoch = 3
    (leg,) = (await node.stub.Search(request, timeout=TIMEOUT_S)).shards
    assert (leg.status, leg.voting_epoch) == (shard_pb2.REPLICA_STATUS_OK, 1), "no vote in epoch 3, but an answer"
    uncovered = search_request(entry, require=GtidSet.of(Gtid(SOURCE, 99)), wait_ms=20)
    (leg,) = (await node.stub.Search(uncovered, timeout=TIMEOUT_S)).shards
    assert leg.status == shard_pb2.REPLICA_STATUS_NOT_COVERED
    assert leg.index_epoch


async def test_bad_searches_are_invalid_arguments(node: ShardNode) -> None:
    entry = batch(1, [("a", 1)])
    zero_k, dims, zeros, unknown = (search_request(entry) for _ in range(4))
    zero_k.k = 0
    dims.queries[0].vector.dim = 3
    zeros.queries[0].vector.data = bytes(len(zeros.queries[0].vector.data))
    unknown.collection = "other"
    for request, code, word in (
        (zero_k, grpc.StatusCode.INVALID_ARGUMENT, "k must be"),
        (dims, grpc.StatusCode.INVALID_ARGUMENT, "queries[0].vector"),
        (zeros, grpc.StatusCode.INVALID_ARGUMENT, "queries[0].vector"),
        (unknown, grpc.StatusCode.NOT_FOUND, "other"),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await node.stub.Search(request, timeout=TIMEOUT_S)
        assert caught.value.code() is code
        assert word in (caught.value.details() or "")


async def test_a_search_pulls_what_its_view_lacks(pair: tuple[ShardNode, ShardNode]) -> None:
    one, two = pair
    two.replica.config = replace(two.config.shard, gossip_ms=60_000)
    gossip(one, two)
    await two.node.ready()
    entry = batch(1, [("a", 3)])
    await one.stub.Write(write_request(entry, now(entry)), timeout=TIMEOUT_S)
    assert not two.applied, "its next exchange is a minute away"
    request = search_request(entry, require=GtidSet.of(entry.gtid), holders=("n1",), wait_ms=1)
    (leg,) = (await two.stub.Search(request, timeout=TIMEOUT_S)).shards
    assert (leg.status, leg.replica, leg.waited) == (OK, two.replica.replica_id, True)
    assert [(hit.document_id, hit.ordinal) for hit in leg.results[0].hits][:1] == [("a", 0)]


async def test_gossip_makes_two_nodes_equal(pair: tuple[ShardNode, ShardNode]) -> None:
    one, two = pair
    gossip(one, two)
    await one.node.ready()
    await two.node.ready()
    for step in range(1, 30):
        target, entry = (one if step % 2 else two), batch(step, [(f"d{step % 7}", step % 4)])
        assert (await target.stub.Write(write_request(entry, now(entry)), timeout=TIMEOUT_S)).status == OK
    await eventually(lambda: len(one.applied) == len(two.applied) == 29)
    states = [
        (await each.stub.NodeStatus(shard_pb2.NodeStatusRequest(), timeout=TIMEOUT_S)).replicas[0] for each in pair
    ]
    assert states[0].digest == states[1].digest
    assert states[0].index_epoch == states[1].index_epoch
    assert [state.state for state in states] == ["SERVING", "SERVING"]
    assert [state.message for state in states] == ["", ""]


async def test_a_missing_dependency_is_pulled_from_the_peer(pair: tuple[ShardNode, ShardNode]) -> None:
    one, two = pair
    whole = batch(1, [("a", 4)])
    at = now(whole)
    first = replace(whole, heads=(), passages=whole.passages[:2])
    last = replace(whole, gtid=Gtid(SOURCE, 2), passages=whole.passages[2:], depends=GtidSet.of(whole.gtid))
    assert (await one.stub.Write(write_request(first, at), timeout=TIMEOUT_S)).status == OK
    refused = await two.stub.Write(write_request(last, at), timeout=TIMEOUT_S)
    assert refused.status == shard_pb2.REPLICA_STATUS_MISSING_DEPENDENCY
    gossip(one, two)
    await eventually(lambda: whole.gtid in two.applied)
    assert (await two.stub.Write(write_request(last, at), timeout=TIMEOUT_S)).status == OK
    await eventually(lambda: last.gtid in one.applied)
    for each in pair:
        (leg,) = (await each.stub.Search(search_request(whole, k=9), timeout=TIMEOUT_S)).shards
        assert sorted(hit.ordinal for hit in leg.results[0].hits) == [0, 1, 2, 3]


async def test_a_flipped_byte_is_not_served_and_is_mended_by_the_peer(pair: tuple[ShardNode, ShardNode]) -> None:
    one, two = pair
    gossip(one, two)
    entry = batch(1, [("a", 2)])
    await one.stub.Write(write_request(entry, now(entry)), timeout=TIMEOUT_S)
    await eventually(lambda: entry.gtid in two.applied)
    assert one.replica.engine is not None
    database = Database(one.replica.engine.directory / DATABASE_FILE, writable=True)
    database.rows("UPDATE passages SET payload = CAST('wrong' AS BLOB) WHERE ordinal = 0")
    database.close()
    (leg,) = (await one.stub.Search(search_request(entry), timeout=TIMEOUT_S)).shards
    assert leg.status == shard_pb2.REPLICA_STATUS_FAILED
    assert "a#0" in leg.message
    engine = one.replica.engine
    await eventually(lambda: not engine.damaged)
    (leg,) = (await one.stub.Search(search_request(entry), timeout=TIMEOUT_S)).shards
    assert leg.status == OK
    assert leg.results[0].hits[0].payload == entry.passages[0].payload


@pytest.mark.parametrize("what", ["fewer passages", "another text"])
async def test_different_rows_at_equal_applied_sets_raise_an_alarm(
    pair: tuple[ShardNode, ShardNode], what: str
) -> None:
    one, two = pair
    whole, at = batch(1, [("a", 2)]), now(batch(1, [("a", 2)]))
    first, last = whole.passages
    if what == "fewer passages":
        part = replace(whole, heads=(replace(whole.heads[0], passages=1),), passages=(first,))
    else:
        part = replace(whole, passages=(first, replace(last, vector=first.vector)))
    await one.stub.Write(write_request(whole, at), timeout=TIMEOUT_S)
    await two.stub.Write(write_request(part, at), timeout=TIMEOUT_S)
    gossip(one, two)
    await eventually(lambda: one.replica.divergences > 0)
    status = await one.stub.NodeStatus(shard_pb2.NodeStatusRequest(), timeout=TIMEOUT_S)
    assert "digest mismatches" in status.replicas[0].message


async def test_a_lost_disk_fails_one_replica_and_not_the_node(tmp_path: Path) -> None:
    config = nodes_config(tmp_path, nodes=1)
    config = replace(config, collections={**config.collections, "more": config.collections[COLLECTION]})

    topology_file.bootstrap(config)
    lost = ShardNode(config, "n1")
    directory = config.replica_dir("n1", lost.node.replicas["more", 0].replica_id)
    (directory / topology_file.MARKER).unlink()
    lost.pool.close()
    node = await ShardNode(config, "n1").start()
    gossip(node)
    await node.node.ready()
    states = (await node.stub.NodeStatus(shard_pb2.NodeStatusRequest(), timeout=TIMEOUT_S)).replicas
    found = {state.collection: (state.state, state.message) for state in states}
    assert found[COLLECTION] == ("SERVING", "")
    assert found["more"][0] == "FAILED"
    assert "lost its disk" in found["more"][1]
    summary = await node.stub.Summary(shard_pb2.SummaryRequest(epoch=1, collection="more"), timeout=TIMEOUT_S)
    assert summary.summaries[0].status == shard_pb2.REPLICA_STATUS_FAILED
    await node.stop()


async def test_many_documents_survive_a_long_pull(pair: tuple[ShardNode, ShardNode]) -> None:
    one, two = pair
    for step in range(1, 120):
        entry = batch(step, [(f"d{step}-{n}", 2) for n in range(3)])
        await one.stub.Write(write_request(entry, now(entry)), timeout=TIMEOUT_S)
    gossip(one, two)
    await eventually(lambda: two.applied == one.applied)
    assert one.replica.engine is not None
    assert two.replica.engine is not None
    assert two.replica.engine.view.digest == one.replica.engine.view.digest
    assert two.replica.engine.view.rows_live == 714


def test_the_contract_knows_every_status() -> None:
    for status in ReplicaStatus:
        assert shard_pb2.ReplicaStatus.Name(status_to_wire(status)) == f"REPLICA_STATUS_{status.name}"
    assert len(ReplicaStatus) == len(shard_pb2.ReplicaStatus.keys()) - 1
