"""The client against a scripted router behind real mutual TLS."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from opentelemetry import context, trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

from ostraka import (
    Client,
    ClientOptions,
    Consistency,
    Fusion,
    NewDocument,
    NewPassage,
    Outcome,
    RetryPolicy,
    SearchMode,
    Version,
)
from ostraka import errors as client_errors
from ostraka.answers import Answer, AskEvent, Delta, Retrieved
from ostraka.v1 import passage_pb2, router_pb2, shard_pb2
from services.quorum.gtid import Gtid, GtidSet
from services.quorum.session import decode_session, encode_session
from services.runtime import errors as mesh_errors
from tests.inprocess import mesh_config, running_server

QUICK = ClientOptions(retry=RetryPolicy(attempts_max=3, pause_ms=1, pause_ms_max=1))
Handler = Callable[[Any, grpc.aio.ServicerContext[Any, Any]], Any]


@asynccontextmanager
async def talking_to(directory: Path, options: ClientOptions = QUICK, **handlers: Handler) -> AsyncIterator[Client]:
    """A client of a router whose methods are `handlers`."""
    config = mesh_config(directory)
    behaviors = {f"/ostraka.v1.RouterService/{name}": handler for name, handler in handlers.items()}
    async with running_server(config, behaviors, identity="router") as server:
        address = f"127.0.0.1:{server.port}"
        async with Client([address], certs=config.certs_dir, collection="docs", options=options) as client:
            yield client


def token(seq: int) -> bytes:
    return encode_session({("docs", 0): GtidSet.of(Gtid(7, seq))})


def hit(passage_id: str = "a#0") -> passage_pb2.Hit:
    return passage_pb2.Hit(
        passage=passage_pb2.Passage(
            passage_id=passage_id,
            document_id="a",
            text="words",
            metadata={"year": passage_pb2.MetadataValue(integer=3), "ok": passage_pb2.MetadataValue(flag=True)},
            version=passage_pb2.Version(hlc=5 << 16, source=9),
            vector=passage_pb2.Vector(dim=2, data=np.array([1, 0], "<f4").tobytes()),
        ),
        provenance=passage_pb2.Provenance(
            passage_id=passage_id,
            score=0.5,
            dense_score=0.4,
            dense_rank=2,
            lexical_score=7.5,
            lexical_rank=1,
            rank=1,
            shard=1,
            replica="r",
        ),
    )


def document(document_id: str = "a") -> NewDocument:
    return NewDocument(
        document_id=document_id,
        passages=[NewPassage(text="t", vector=[1.0, 2.0], metadata={"n": 1, "f": 0.5, "b": True})],
    )


def written(document_id: str, outcome: Outcome, hlc: int = 1) -> router_pb2.DocumentWrite:
    version = passage_pb2.Version(hlc=hlc, source=2)
    return router_pb2.DocumentWrite(document_id=document_id, outcome=outcome.value, version=version, reason="because")


async def test_search_carries_everything_there_and_back(tmp_path: Path) -> None:
    seen: list[router_pb2.SearchRequest] = []

    async def search(request: router_pb2.SearchRequest, _context: Any) -> router_pb2.SearchResponse:
        seen.append(request)
        return router_pb2.SearchResponse(
            results=[router_pb2.QueryResult(hits=[hit()]) for _ in request.queries],
            coverage=[
                passage_pb2.ShardCoverage(shard=1, state=passage_pb2.ShardCoverage.STATE_UNAVAILABLE, reason="gone")
            ],
            consistency=passage_pb2.CONSISTENCY_LEVEL_SESSION,
            session_token=token(1),
            trace_id="abc",
            weak=True,
            mode=passage_pb2.SEARCH_MODE_HYBRID,
            lexical_statistics_age_ms=77,
        )

    async with talking_to(tmp_path, Search=search) as client:
        results = await client.search_batch(
            ["words", np.array([3, 4], dtype=np.float64)],
            k=3,
            consistency=Consistency.SESSION,
            exact=True,
            allow_partial=True,
            mode="hybrid",
            fusion=Fusion(lexical_weight=0.0, depth=50),
            lexical_texts=["", "other words"],
        )
        assert decode_session(client.session_token) == decode_session(token(1))
    (request,) = seen
    assert (request.collection, request.k, request.exact, request.allow_partial) == ("docs", 3, True, True)
    assert request.consistency == passage_pb2.CONSISTENCY_LEVEL_SESSION
    assert request.queries[0].text == "words"
    assert np.frombuffer(request.queries[1].vector.data, "<f4").tolist() == [3.0, 4.0]
    assert request.mode == passage_pb2.SEARCH_MODE_HYBRID
    assert request.fusion == passage_pb2.Fusion(lexical_weight=0.0, depth=50)
    assert not request.fusion.HasField("dense_weight")
    assert [query.lexical_text for query in request.queries] == ["", "other words"]
    first = results[0]
    assert (first.mode, first.lexical_statistics_age_ms) == (SearchMode.HYBRID, 77)
    assert len(results) == 2
    assert (first.trace_id, first.weak, first.complete, first.coverage[0].reason) == ("abc", True, False, "gone")
    (found,) = first
    assert found.passage.metadata == {"year": 3, "ok": True}
    assert found.passage.vector is not None
    assert found.passage.vector.tolist() == [1.0, 0.0]
    assert found.passage.version == Version(5 << 16, 9)
    assert (found.passage.version.unix_ms, found.score, found.provenance.replica) == (5, 0.5, "r")
    assert (found.provenance.dense_rank, found.provenance.lexical_rank, found.provenance.lexical_score) == (2, 1, 7.5)


async def test_reads_are_repeated_and_writes_are_not(tmp_path: Path) -> None:
    calls: list[str] = []

    async def search(request: router_pb2.SearchRequest, _context: Any) -> router_pb2.SearchResponse:
        calls.append("search")
        if len(calls) < 3:
            raise mesh_errors.Unavailable("not yet")
        return router_pb2.SearchResponse(results=[router_pb2.QueryResult()])

    async def upsert(_request: Any, _context: Any) -> Any:
        calls.append("upsert")
        raise mesh_errors.Unavailable("who knows")

    async with talking_to(tmp_path, Search=search, Upsert=upsert) as client:
        assert len(await client.search("q")) == 0
        with pytest.raises(client_errors.Unavailable, match="who knows") as caught:
            await client.upsert([document()])
    assert calls == ["search", "search", "search", "upsert"]
    assert not caught.value.definite


async def test_refusals_at_the_door_are_repeated_for_writes_too(tmp_path: Path) -> None:
    calls = 0

    async def upsert(request: router_pb2.UpsertRequest, _context: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise mesh_errors.ResourceExhausted("the queue is full", retry_ms=1)
        return router_pb2.UpsertResponse(documents=[written("a", Outcome.ACKNOWLEDGED)], session_token=token(calls))

    async with talking_to(tmp_path, Upsert=upsert) as client:
        result = await client.upsert([document()])
    assert calls == 2
    assert result.acknowledged


async def test_uncertain_documents_are_repeated_with_their_version(tmp_path: Path) -> None:
    seen: list[router_pb2.UpsertRequest] = []

    async def upsert(request: router_pb2.UpsertRequest, _context: Any) -> Any:
        seen.append(request)
        outcomes = {"a": Outcome.ACKNOWLEDGED, "b": Outcome.UNCERTAIN if len(seen) < 3 else Outcome.ACKNOWLEDGED}
        return router_pb2.UpsertResponse(
            documents=[written(d.document_id, outcomes[d.document_id], hlc=77) for d in request.documents],
            session_token=token(len(seen)),
        )

    async with talking_to(tmp_path, Upsert=upsert) as client:
        result = await client.upsert([document("a"), document("b")])
        assert decode_session(client.session_token) == {("docs", 0): GtidSet.of(*(Gtid(7, n) for n in (1, 2, 3)))}
    assert [[d.document_id for d in request.documents] for request in seen] == [["a", "b"], ["b"], ["b"]]
    assert [request.documents[-1].retry_version.hlc for request in seen] == [0, 77, 77]
    assert result.acknowledged
    assert [d.document_id for d in result.documents] == ["a", "b"]


@pytest.mark.parametrize(
    ("outcome", "error"),
    [(Outcome.UNCERTAIN, client_errors.WriteUncertain), (Outcome.REFUSED, client_errors.WriteRefused)],
)
async def test_what_stays_unacknowledged_is_said(
    tmp_path: Path, outcome: Outcome, error: type[client_errors.WriteError]
) -> None:
    async def upsert(request: router_pb2.UpsertRequest, _context: Any) -> Any:
        return router_pb2.UpsertResponse(documents=[written(d.document_id, outcome) for d in request.documents])

    async def delete(request: router_pb2.DeleteRequest, _context: Any) -> Any:
        deletions.append(request)
        return router_pb2.DeleteResponse(documents=[written(d, outcome) for d in request.document_ids])

    deletions: list[router_pb2.DeleteRequest] = []
    async with talking_to(tmp_path, Upsert=upsert, Delete=delete) as client:
        with pytest.raises(error, match="because") as caught:
            await client.upsert([document()])
        assert caught.value.result.documents[0].outcome is outcome
        assert caught.value.definite is (outcome is Outcome.REFUSED)
        assert not (await client.upsert([document()], check=False)).acknowledged
        with pytest.raises(error):
            await client.delete(["a"])
    assert len(deletions) == 1, "a deletion repeated would be a new one"


async def test_an_answer_streams_and_is_never_begun_twice(tmp_path: Path) -> None:
    calls = 0

    async def ask(request: router_pb2.AskRequest, _context: Any) -> AsyncIterator[router_pb2.AskEvent]:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise mesh_errors.Unavailable("before anything arrived")
        yield router_pb2.AskEvent(retrieved=router_pb2.Retrieved(hits=[hit()]))
        yield router_pb2.AskEvent(delta="Yes ")
        if request.question == "break":
            raise mesh_errors.Unavailable("half way")
        yield router_pb2.AskEvent(delta="[1].")
        citation = router_pb2.Citation(number=1, passage_id="a#0")
        yield router_pb2.AskEvent(
            answer=router_pb2.Answer(text="Yes [1].", citations=[citation], session_token=token(4))
        )

    events: list[AskEvent] = []
    async with talking_to(tmp_path, Ask=ask) as client:
        async for event in client.ask("why?"):
            events.append(event)
        assert client.session_token == token(4)
        assert (await client.answer("why?")).citations[0].passage_id == "a#0"
        before = calls
        with pytest.raises(client_errors.Unavailable, match="half way"):
            await client.answer("break")
    assert [type(event) for event in events] == [Retrieved, Delta, Delta, Answer]
    assert calls == before + 1


async def test_leaving_the_stream_cancels_the_call(tmp_path: Path) -> None:
    cancelled = asyncio.Event()

    async def ask(_request: Any, _context: Any) -> AsyncIterator[router_pb2.AskEvent]:
        try:
            yield router_pb2.AskEvent(delta="first")
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    async with talking_to(tmp_path, Ask=ask) as client:
        stream = client.ask("why?")
        assert await anext(aiter(stream)) == Delta("first")
        await stream.aclose()
        await asyncio.wait_for(cancelled.wait(), 10)


async def test_one_deadline_covers_the_repetitions(tmp_path: Path) -> None:
    async def search(_request: Any, _context: Any) -> Any:
        await asyncio.Event().wait()

    async with talking_to(tmp_path, Search=search) as client:
        with pytest.raises(client_errors.DeadlineExceeded):
            await client.search("q", timeout_s=0.05)
        with pytest.raises(client_errors.DeadlineExceeded, match="positive"):
            await client.search("q", timeout_s=0)


async def test_the_callers_trace_is_continued_without_baggage(tmp_path: Path) -> None:
    headers: list[dict[str, Any]] = []

    async def status(_request: Any, call: grpc.aio.ServicerContext[Any, Any]) -> router_pb2.StatusResponse:
        headers.append(dict(call.invocation_metadata() or ()))
        return router_pb2.StatusResponse()

    async with talking_to(tmp_path, Status=status) as client:
        await client.status()
        span = NonRecordingSpan(SpanContext(0xABC, 0xDEF, is_remote=False, trace_flags=TraceFlags(1)))
        attached = context.attach(trace.set_span_in_context(span))
        try:
            await client.status()
        finally:
            context.detach(attached)
    assert "traceparent" not in headers[0]
    assert headers[1]["traceparent"] == f"00-{0xABC:032x}-{0xDEF:016x}-01"
    assert "baggage" not in headers[1]


async def test_status_says_whether_replicas_agree(tmp_path: Path) -> None:
    def node(name: str, last: int) -> router_pb2.NodeView:
        applied = passage_pb2.GtidSet(sources=[passage_pb2.SourceIntervals(source=1, bounds=[1, last])])
        replica = shard_pb2.ReplicaState(collection="docs", shard=0, replica=name, state="SERVING", applied=applied)
        return router_pb2.NodeView(node=name, reachable=True, status=shard_pb2.NodeStatusResponse(replicas=[replica]))

    async def status(_request: Any, _context: Any) -> router_pb2.StatusResponse:
        return router_pb2.StatusResponse(
            nodes=[node("n1", 4), node("n2", last)],
            collections=[router_pb2.CollectionView(collection="docs", shards=1, replicas=2)],
        )

    async with talking_to(tmp_path, Status=status) as client:
        last = 3
        behind = await client.status()
        last = 4
        equal = await client.status()
    assert not behind.converged("docs")
    assert equal.converged("docs")
    assert not equal.converged("unknown")
    assert equal.replicas("docs", 0)[0].batches_applied == 4


async def test_status_tells_learners_from_voters(tmp_path: Path) -> None:
    def node(name: str, last: int, *, learner: bool) -> router_pb2.NodeView:
        applied = passage_pb2.GtidSet(sources=[passage_pb2.SourceIntervals(source=1, bounds=[1, last])])
        replica = shard_pb2.ReplicaState(
            collection="docs", shard=0, replica=name, applied=applied, learner=learner, epoch=5, frozen=learner
        )
        return router_pb2.NodeView(node=name, reachable=True, status=shard_pb2.NodeStatusResponse(replicas=[replica]))

    async def status(_request: Any, _context: Any) -> router_pb2.StatusResponse:
        return router_pb2.StatusResponse(
            nodes=[node("n1", 4, learner=False), node("n2", last, learner=True)],
            collections=[router_pb2.CollectionView(collection="docs", shards=1, replicas=1)],
        )

    async with talking_to(tmp_path, Status=status) as client:
        last = 3
        behind = await client.status()
        last = 4
        equal = await client.status()
    assert (behind.converged("docs"), equal.converged("docs")) == (False, True)
    told = [(replica.learner, replica.epoch, replica.frozen) for replica in equal.replicas("docs", 0)]
    assert told == [(False, 5, False), (True, 5, True)]


async def test_a_router_that_is_down_is_passed_over(tmp_path: Path) -> None:
    async def status(_request: Any, _context: Any) -> router_pb2.StatusResponse:
        return router_pb2.StatusResponse(version="1")

    config = mesh_config(tmp_path)
    behaviors = {"/ostraka.v1.RouterService/Status": status}
    async with running_server(config, behaviors, identity="router") as server:
        addresses = ["127.0.0.1:9", f"127.0.0.1:{server.port}"]
        async with Client(addresses, certs=config.certs_dir, options=QUICK) as client:
            for _ in range(4):
                assert (await client.status()).version == "1"


@pytest.mark.parametrize("identity", ["embed", "n1"])
async def test_a_server_of_another_role_is_not_believed(tmp_path: Path, identity: str) -> None:
    config = mesh_config(tmp_path)
    async with (
        running_server(config, identity=identity) as server,
        Client([f"127.0.0.1:{server.port}"], certs=config.certs_dir, options=QUICK) as client,
    ):
        with pytest.raises(client_errors.Unavailable):
            await client.status()


async def test_a_role_that_may_not_call_is_told_so(tmp_path: Path) -> None:
    config = mesh_config(tmp_path)
    async with (
        running_server(config, identity="router") as server,
        Client([f"127.0.0.1:{server.port}"], certs=config.certs_dir, identity="embed", options=QUICK) as client,
    ):
        with pytest.raises(client_errors.PermissionDenied):
            await client.status()


async def test_wrong_values_are_refused_before_the_wire(tmp_path: Path) -> None:
    async with talking_to(tmp_path) as client:
        for bad in ([[1.0, 2.0]], [], ["a"]):
            with pytest.raises(client_errors.InvalidRequest) as caught:
                await client.search(np.array(bad) if bad != ["a"] else bad)  # type: ignore[arg-type]  # wrong on purpose
            assert caught.value.field == "queries[0]"
        with pytest.raises(client_errors.InvalidRequest, match="not one of dense, lexical") as caught:
            await client.search("x", mode="sparse")
        assert caught.value.field == "mode"
        with pytest.raises(client_errors.InvalidRequest) as caught:
            await client.search("x", mode="two-stage", fusion=Fusion(depth=-1))
        assert caught.value.field == "fusion"
        with pytest.raises(client_errors.InvalidRequest) as caught:
            await client.search("x", mode="hybrid", lexical_texts=["a", "b"])
        assert caught.value.field == "lexical_texts"
        with pytest.raises(client_errors.InvalidRequest, match=r"^k: ") as caught:
            await client.search("q", k=-1)
        assert caught.value.field == "k"
        with pytest.raises(client_errors.InvalidRequest, match="metadata"):
            await client.upsert([NewDocument(document_id="a", passages=[], metadata={"x": object()})])  # type: ignore[dict-item]  # wrong on purpose
        with pytest.raises(client_errors.InvalidRequest):
            await client.upsert([NewDocument(document_id="a", passages=[NewPassage(text="t", char_start=-1)])])


async def test_life_cycle_and_files(tmp_path: Path) -> None:
    config = mesh_config(tmp_path)
    client = Client(["127.0.0.1:1"], certs=config.certs_dir)
    with pytest.raises(client_errors.ClientStateError, match="open the client first"):
        await client.status()
    async with client:
        pass
    with pytest.raises(client_errors.ClientStateError, match="closed"):
        await client.status()
    with pytest.raises(client_errors.ClientStateError, match="once"):
        await client.__aenter__()
    opened = await Client.connect("127.0.0.1:1", certs=config.certs_dir)
    await opened.close()
    await opened.close()
    with pytest.raises(client_errors.CertificateError, match=r"nobody\.pem"):
        Client(["127.0.0.1:1"], certs=config.certs_dir, identity="nobody")
    (config.certs_dir / "client.pem").write_text("not PEM")
    with pytest.raises(client_errors.CertificateError, match=r"client\.pem: holds no PEM certificate"):
        Client(["127.0.0.1:1"], certs=config.certs_dir)
    with pytest.raises(client_errors.InvalidRequest, match="addresses"):
        Client([], certs=config.certs_dir)
    with pytest.raises(client_errors.InvalidRequest, match="certs"):
        Client(["127.0.0.1:1"])


def test_services_do_not_pay_for_the_client() -> None:
    import subprocess
    import sys

    code = "import sys, ostraka, ostraka.v1; assert not {'ostraka.client', 'numpy', 'grpc'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
