"""What each level promises, kept by real routers and shard nodes over mutual TLS, whoever lags or is stopped."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import grpc
import pytest

from ostraka import Client, Consistency, NewDocument, NewPassage, WriteLevel
from ostraka.v1 import passage_pb2, router_pb2, shard_pb2
from services.quorum.clock import Version
from services.quorum.gtid import Gtid
from services.quorum.rows import OpKey, WriteBatch
from services.shard.engine import DATABASE_FILE
from services.shard.store import Database
from services.shard.wire import key_to_wire
from tests.integration.level_nodes import LevelMesh, LevelRouter, new_document
from tests.integration.shard_nodes import COLLECTION, eventually, now, write_request
from tests.unit.shard_rows import DIM, batch

QUORUM = passage_pb2.CONSISTENCY_LEVEL_QUORUM
BOUNDED = passage_pb2.CONSISTENCY_LEVEL_BOUNDED
LINEARIZABLE = passage_pb2.CONSISTENCY_LEVEL_LINEARIZABLE
ONE = passage_pb2.CONSISTENCY_LEVEL_ONE
WRITE_ONE = passage_pb2.WRITE_LEVEL_ONE
WRITE_QUORUM = passage_pb2.WRITE_LEVEL_QUORUM
WRITE_ALL = passage_pb2.WRITE_LEVEL_ALL
ACKNOWLEDGED = router_pb2.WRITE_OUTCOME_ACKNOWLEDGED
UNCERTAIN = router_pb2.WRITE_OUTCOME_UNCERTAIN
TIMEOUT_S = 10.0
SHORT_S = 1.0
"""For calls that are meant to use up their deadline."""


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[LevelMesh]:
    made = await LevelMesh(tmp_path).start()
    yield made
    await made.stop()


async def get(
    router: LevelRouter, document_id: str, level: Any, *, staleness_ms: int = 0, timeout_s: float = TIMEOUT_S
) -> router_pb2.GetResponse:
    request = router_pb2.GetRequest(
        collection=COLLECTION, document_ids=[document_id], consistency=level, max_staleness_ms=staleness_ms
    )
    return await router.stub.Get(request, timeout=timeout_s)


async def upsert(
    router: LevelRouter, document_id: str, text: str = "text", *, timeout_s: float = TIMEOUT_S, **more: Any
) -> router_pb2.UpsertResponse:
    request = router_pb2.UpsertRequest(collection=COLLECTION, documents=[new_document(document_id, text)], **more)
    return await router.stub.Upsert(request, timeout=timeout_s)


async def delete(router: LevelRouter, document_id: str, **more: Any) -> router_pb2.DocumentWrite:
    request = router_pb2.DeleteRequest(collection=COLLECTION, document_ids=[document_id], **more)
    return (await router.stub.Delete(request, timeout=TIMEOUT_S)).documents[0]


async def put_on(mesh: LevelMesh, entry: WriteBatch, *names: str, key: OpKey | None = None) -> Version:
    """What a coordinator leaves behind that died while it wrote: the batch on these voters alone."""
    at = now(entry)
    request = write_request(entry, at)
    if key is not None:
        request.keys.append(key_to_wire(key))
    for name in names:
        reply = await mesh.nodes[name].stub.Write(request, timeout=TIMEOUT_S)
        assert reply.status == shard_pb2.REPLICA_STATUS_OK
    return at


def holding(mesh: LevelMesh, gtid: Gtid) -> list[str]:
    return [name for name, node in mesh.nodes.items() if gtid in node.applied]


async def refusal(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call
    return error.value


async def test_bounded_refuses_a_stale_replica_and_takes_one_that_refreshed(mesh: LevelMesh) -> None:
    entry = batch(1, [("a", 1)])
    await put_on(mesh, entry, "n1", "n2")  # acknowledged by W voters; n3 knows nothing of it
    stale = shard_pb2.GetDocumentsRequest(
        epoch=1, collection=COLLECTION, shard=0, document_ids=["a"], max_staleness_ms=1
    )
    refused = await mesh.nodes["n3"].stub.GetDocuments(stale, timeout=TIMEOUT_S)
    assert refused.status == shard_pb2.REPLICA_STATUS_TOO_STALE
    assert "asked for less than 1 ms" in refused.message
    assert entry.gtid not in mesh.nodes["n3"].applied

    router = mesh.routers[0]
    router.prefer("n3")
    past = await get(router, "a", ONE)
    assert list(past.missing) == ["a"]
    assert past.coverage[0].staleness_ms > 0
    router.prefer("n3")
    # Less than any exchange so far is old: every replica refuses until one has exchanged anew.
    fresh = await get(router, "a", BOUNDED, staleness_ms=1)
    assert [passage.document_id for passage in fresh.passages] == ["a"]
    assert (fresh.consistency, fresh.coverage[0].staleness_ms, fresh.coverage[0].level) == (BOUNDED, 0, BOUNDED)


async def test_a_replica_that_is_recent_enough_is_read_as_it_is(mesh: LevelMesh) -> None:
    await put_on(mesh, batch(1, [("a", 1)]), "n1", "n2")
    mesh.routers[0].prefer("n3")
    reply = await get(mesh.routers[0], "a", BOUNDED, staleness_ms=3_600_000)
    assert list(reply.missing) == ["a"]  # acknowledged less than an hour ago: allowed to be missing
    assert 0 < reply.coverage[0].staleness_ms < 3_600_000


async def test_bounded_searches_and_lists_state_their_age(mesh: LevelMesh) -> None:
    await put_on(mesh, batch(1, [("a", 1)]), "n1", "n2")
    stub = mesh.routers[0].stub
    query = router_pb2.Query(vector=new_document("x").passages[0].vector)
    bound: dict[str, Any] = {"collection": COLLECTION, "consistency": BOUNDED, "max_staleness_ms": 1}
    found = await stub.Search(router_pb2.SearchRequest(queries=[query], **bound), timeout=TIMEOUT_S)
    assert [hit.passage.document_id for hit in found.results[0].hits] == ["a"]
    listed = await stub.ListDocuments(router_pb2.ListDocumentsRequest(**bound), timeout=TIMEOUT_S)
    assert [document.document_id for document in listed.documents] == ["a"]
    for coverage in (found.coverage[0], listed.coverage[0]):
        assert (coverage.HasField("staleness_ms"), coverage.staleness_ms) == (True, 0)


async def test_bounded_is_unavailable_when_nobody_is_left_to_exchange_with(mesh: LevelMesh) -> None:
    await mesh.stop_nodes("n2", "n3")
    error = await refusal(get(mesh.routers[0], "a", BOUNDED, staleness_ms=1, timeout_s=SHORT_S))
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert "cannot be read at this level" in (error.details() or "")
    stale = await get(mesh.routers[0], "a", BOUNDED, staleness_ms=3_600_000)
    assert list(stale.missing) == ["a"]


async def test_a_linearizable_read_makes_what_it_returns_durable_on_a_write_quorum(mesh: LevelMesh) -> None:
    entry = batch(1, [("a", 1)])
    await put_on(mesh, entry, "n1")  # its coordinator died: applied by a minority, acknowledged to nobody
    router = mesh.routers[0]
    router.prefer("n1")
    seen = await get(router, "a", LINEARIZABLE)
    assert [passage.document_id for passage in seen.passages] == ["a"]
    assert len(holding(mesh, entry.gtid)) >= 2
    # No flicker: whichever quorum answers from now on, with or without the voter that had it first.
    await mesh.stop_nodes("n1")
    for later in mesh.routers:
        for first in ("n2", "n3"):
            later.prefer(first)
            again = await get(later, "a", QUORUM)
            assert [passage.document_id for passage in again.passages] == ["a"]


async def test_a_linearizable_read_writes_tombstones_back_too(mesh: LevelMesh) -> None:
    router = mesh.routers[0]
    await upsert(router, "a", level=WRITE_ALL)
    gone = replace(batch(1, [("a", 1)]), passages=())
    gone = replace(gone, heads=(replace(gone.heads[0], passages=0),))
    await put_on(mesh, gone, "n1")
    router.prefer("n1")
    assert list((await get(router, "a", LINEARIZABLE)).missing) == ["a"]
    await mesh.stop_nodes("n1")
    assert list((await get(router, "a", QUORUM)).missing) == ["a"]


async def test_a_linearizable_search_is_refused_with_what_to_use(mesh: LevelMesh) -> None:
    query = router_pb2.Query(vector=new_document("x").passages[0].vector)
    request = router_pb2.SearchRequest(collection=COLLECTION, queries=[query], consistency=LINEARIZABLE)
    error = await refusal(mesh.routers[0].stub.Search(request, timeout=TIMEOUT_S))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "Get" in (error.details() or "")
    assert "QUORUM" in (error.details() or "")


async def test_all_needs_every_voter_and_quorum_does_not(mesh: LevelMesh) -> None:
    router = mesh.routers[0]
    whole = await upsert(router, "a", level=WRITE_ALL)
    assert (whole.documents[0].outcome, whole.documents[0].acks) == (ACKNOWLEDGED, 3)
    assert (whole.level, whole.meaning) == (WRITE_ALL, "durable and visible on every voter")
    await mesh.stop_nodes("n3")
    short = await upsert(router, "b", level=WRITE_ALL, timeout_s=SHORT_S)
    (written,) = short.documents
    assert (written.outcome, written.acks) == (UNCERTAIN, 2)
    assert "2 of 3 needed voters" in written.reason
    assert "n3" in written.reason
    assert written.version.hlc
    enough = await upsert(router, "c")
    assert (enough.documents[0].outcome, enough.level) == (ACKNOWLEDGED, WRITE_QUORUM)
    assert "2 voters" in enough.meaning


async def test_one_needs_one_voter_and_says_what_that_is_worth(mesh: LevelMesh) -> None:
    await mesh.stop_nodes("n2", "n3")
    router = mesh.routers[0]
    lone = await upsert(router, "a", level=WRITE_ONE)
    assert (lone.documents[0].outcome, lone.documents[0].acks, lone.level) == (ACKNOWLEDGED, 1, WRITE_ONE)
    assert "may miss it" in lone.meaning
    refused = await upsert(router, "b", timeout_s=SHORT_S)
    assert refused.documents[0].outcome == router_pb2.WRITE_OUTCOME_REFUSED
    assert [passage.document_id for passage in (await get(router, "a", ONE)).passages] == ["a"]


async def test_a_repetition_through_another_router_does_not_override_a_later_delete(mesh: LevelMesh) -> None:
    first, second = mesh.routers
    made = (await upsert(first, "a", idempotency_key="k1")).documents[0]
    assert (made.outcome, made.repeated_key) == (ACKNOWLEDGED, False)
    assert (await delete(second, "a")).outcome == ACKNOWLEDGED
    again = (await upsert(second, "a", idempotency_key="k1")).documents[0]
    assert (again.outcome, again.repeated_key, again.version, again.passages) == (ACKNOWLEDGED, True, made.version, 1)
    assert list((await get(first, "a", QUORUM)).missing) == ["a"]


async def test_an_attempt_that_reached_one_voter_is_found_and_completed(mesh: LevelMesh) -> None:
    asked = new_document("a")
    content = blake2b(b"upsert" + asked.SerializeToString(deterministic=True), digest_size=16).digest()
    entry = batch(1, [("a", 1)])
    at = await put_on(mesh, entry, "n2", key=OpKey("a", "k1", content))
    again = (await upsert(mesh.routers[1], "a", idempotency_key="k1")).documents[0]
    assert (again.outcome, again.repeated_key, again.acks) == (ACKNOWLEDGED, True, 2)
    assert Version(again.version.hlc, again.version.source) == at
    assert len(holding(mesh, entry.gtid)) >= 2
    # The key travelled with the batch: whoever pulled it knows it too.
    wanted = shard_pb2.FindKeysRequest(
        epoch=1, collection=COLLECTION, shard=0, keys=[shard_pb2.IdempotencyKey(document_id="a", key="k1")]
    )
    for name in holding(mesh, entry.gtid):
        reply = await mesh.nodes[name].stub.FindKeys(wanted, timeout=TIMEOUT_S)
        assert [found.key.content for found in reply.found] == [content]


async def test_a_key_names_one_content_of_a_document(mesh: LevelMesh) -> None:
    first, second = mesh.routers
    await upsert(first, "a", "text", idempotency_key="k1")
    error = await refusal(upsert(second, "a", "other text", idempotency_key="k1"))
    assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert "'k1'" in (error.details() or "")
    assert "'a'" in (error.details() or "")
    deleting = await refusal(delete(second, "a", idempotency_key="k1"))
    assert deleting.code() is grpc.StatusCode.FAILED_PRECONDITION
    # The same key of another document names another write.
    assert (await upsert(second, "b", idempotency_key="k1")).documents[0].outcome == ACKNOWLEDGED


async def test_a_repeated_delete_does_not_undo_a_later_write(mesh: LevelMesh) -> None:
    first, second = mesh.routers
    await upsert(first, "a")
    gone = await delete(first, "a", idempotency_key="d1")
    await upsert(second, "a", "again")
    repeated = await delete(second, "a", idempotency_key="d1")
    assert (repeated.version, repeated.repeated_key) == (gone.version, True)
    assert [passage.text for passage in (await get(first, "a", QUORUM)).passages] == ["again"]


async def test_a_keyed_write_without_a_read_quorum_is_not_begun(mesh: LevelMesh) -> None:
    await mesh.stop_nodes("n2", "n3")
    error = await refusal(upsert(mesh.routers[0], "a", idempotency_key="k1", timeout_s=SHORT_S))
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert "nothing was written" in (error.details() or "")
    assert not mesh.nodes["n1"].applied


async def test_levels_that_do_not_exist_are_refused_with_those_that_do(mesh: LevelMesh) -> None:
    reading = await refusal(get(mesh.routers[0], "a", 99))
    assert reading.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert all(
        name in (reading.details() or "") for name in ("99", "ONE", "SESSION", "BOUNDED", "QUORUM", "LINEARIZABLE")
    )
    writing = await refusal(upsert(mesh.routers[0], "a", level=99))
    assert writing.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert all(name in (writing.details() or "") for name in ("99", "ONE", "QUORUM", "ALL"))


@pytest.mark.parametrize(("level", "staleness_ms"), [(BOUNDED, 0), (QUORUM, 5)])
async def test_a_bound_belongs_to_bounded(mesh: LevelMesh, level: Any, staleness_ms: int) -> None:
    error = await refusal(get(mesh.routers[0], "a", level, staleness_ms=staleness_ms))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "BOUNDED" in (error.details() or "")


async def test_the_client_names_levels_and_keys(mesh: LevelMesh) -> None:
    async with Client(
        [f"127.0.0.1:{mesh.routers[0].server.port}"], certs=mesh.config.certs_dir, collection=COLLECTION
    ) as client:
        document = NewDocument(document_id="a", passages=[NewPassage(text="t", vector=[1.0] * DIM)])
        made = await client.upsert([document], level=WriteLevel.ALL, idempotency_key="k1")
        assert (made.level, made.documents[0].acks, made.weak) == (WriteLevel.ALL, 3, False)
        again = await client.upsert([document], idempotency_key="k1")
        assert (again.documents[0].repeated_key, again.documents[0].version) == (True, made.documents[0].version)
        assert "2 voters" in again.meaning
        whole = await client.get(["a"], consistency=Consistency.LINEARIZABLE)
        assert (len(whole.passages), whole.consistency) == (1, Consistency.LINEARIZABLE)
        (result,) = await client.search_batch([[1.0] * DIM], consistency=Consistency.BOUNDED, max_staleness_ms=60_000)
        assert len(result) == 1
        assert result.coverage[0].staleness_ms is not None
        gone = await client.delete(["a"], level=WriteLevel.ONE, idempotency_key="d1")
        assert (gone.level, gone.acknowledged) == (WriteLevel.ONE, True)


async def test_a_damaged_key_is_no_answer_until_a_peer_has_mended_it(mesh: LevelMesh) -> None:
    await upsert(mesh.routers[0], "a", idempotency_key="k1", level=WRITE_ALL)
    engine = mesh.nodes["n1"].replica.engine
    assert engine is not None
    database = Database(engine.directory / DATABASE_FILE, writable=True)
    database.rows("UPDATE op_keys SET content = zeroblob(16)")
    database.close()
    wanted = shard_pb2.FindKeysRequest(
        epoch=1, collection=COLLECTION, shard=0, keys=[shard_pb2.IdempotencyKey(document_id="a", key="k1")]
    )
    refused = await mesh.nodes["n1"].stub.FindKeys(wanted, timeout=TIMEOUT_S)
    assert refused.status == shard_pb2.REPLICA_STATUS_FAILED
    assert "checksum" in refused.message
    again = (await upsert(mesh.routers[1], "a", idempotency_key="k1")).documents[0]
    assert again.repeated_key  # the other voters are a read quorum
    await eventually(lambda: not engine.ledger.ops)
    mended = await mesh.nodes["n1"].stub.FindKeys(wanted, timeout=TIMEOUT_S)
    assert (mended.status, len(mended.found)) == (shard_pb2.REPLICA_STATUS_OK, 1)
    assert any(mended.found[0].key.content)
