"""Every RPC's spans end with an outcome, nest, and join across processes, cancelled and streaming calls included."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from observability import names, rpc, spans
from observability.span_record import KIND_CLIENT, KIND_INTERNAL, KIND_SERVER, STATUS_ERROR, STATUS_UNSET
from observability.sync_stub import traced_stream, traced_unary
from observability.waterfall import tree_text
from ostraka.v1 import embed_pb2 as embed
from ostraka.v1 import embed_pb2_grpc, generator_pb2, generator_pb2_grpc
from services.runtime.channel import channel_options, open_channel
from services.runtime.config import Config
from services.runtime.errors import InvalidArgument
from services.runtime.tls import Role, channel_credentials
from tests.inprocess import mesh_config, running_server
from tests.traced import Recording, recording

EMBED = "/ostraka.v1.EmbedService/Embed"
GENERATE = "/ostraka.v1.GeneratorService/Generate"


@pytest.fixture
def recorded(tmp_path: Path) -> Iterator[Recording]:
    with recording(tmp_path / "traces") as made:
        yield made


@contextlib.asynccontextmanager
async def mesh(directory: Path, behaviors: dict[str, Any]) -> AsyncIterator[grpc.aio.Channel]:
    config = mesh_config(directory)
    async with (
        running_server(config, behaviors) as server,
        open_channel(config, f"127.0.0.1:{server.port}", server_role=Role.EMBED, identity="admin") as channel,
    ):
        yield channel


async def answer(request: Any, context: Any) -> Any:
    with spans.span("inner"):
        return embed.EmbedResponse()


async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
    for number in range(3):
        with spans.span(f"piece {number}"):
            yield generator_pb2.GenerateEvent(delta=str(number))


async def test_unary_and_streaming_nest(tmp_path: Path, recorded: Recording) -> None:
    async with mesh(tmp_path, {EMBED: answer, GENERATE: stream}) as channel:
        with spans.span("root") as root:
            await embed_pb2_grpc.EmbedServiceStub(channel).Embed(embed.EmbedRequest())
            async for _ in generator_pb2_grpc.GeneratorServiceStub(channel).Generate(generator_pb2.GenerateRequest()):
                continue
            trace_id = spans.current_trace_id()
    found = recorded.spans()
    assert {span.trace_id for span in found} == {trace_id}
    assert trace_id == f"{root.get_span_context().trace_id:032x}"
    assert tree_text(found) == "\n".join(
        [
            "root test",
            "  ostraka.v1.EmbedService/Embed CLIENT test",
            "    ostraka.v1.EmbedService/Embed SERVER test",
            "      inner test",
            "  ostraka.v1.GeneratorService/Generate CLIENT test",
            "    ostraka.v1.GeneratorService/Generate SERVER test",
            "      piece 0 test",
            "      piece 1 test",
            "      piece 2 test",
        ]
    )
    (client,) = recorded.named(EMBED[1:], KIND_CLIENT)
    assert client.attributes[names.RPC_SYSTEM] == "grpc"
    assert client.attributes[names.RPC_METHOD] == EMBED[1:]
    assert client.attributes[names.RPC_STATUS_CODE] == "OK"
    assert client.attributes[names.SERVER_ADDRESS] == "127.0.0.1"
    assert client.status == STATUS_UNSET


@pytest.mark.parametrize(
    ("error", "code", "server_status"),
    [
        (InvalidArgument("no", "k"), "INVALID_ARGUMENT", STATUS_UNSET),
        (ValueError("defect"), "INTERNAL", STATUS_ERROR),
    ],
)
async def test_errors_are_told_by_both_sides(
    tmp_path: Path, recorded: Recording, error: Exception, code: str, server_status: int
) -> None:
    async def raising(request: Any, context: Any) -> Any:
        raise error

    async def raising_stream(request: Any, context: Any) -> AsyncIterator[Any]:
        yield generator_pb2.GenerateEvent(delta="first")
        raise error

    async with mesh(tmp_path, {EMBED: raising, GENERATE: raising_stream}) as channel:
        with pytest.raises(grpc.aio.AioRpcError):
            await embed_pb2_grpc.EmbedServiceStub(channel).Embed(embed.EmbedRequest())
        with pytest.raises(grpc.aio.AioRpcError):
            await _read_all(generator_pb2_grpc.GeneratorServiceStub(channel).Generate(generator_pb2.GenerateRequest()))
    for method in (EMBED, GENERATE):
        (client,), (server,) = recorded.named(method[1:], KIND_CLIENT), recorded.named(method[1:], KIND_SERVER)
        for span in (client, server):
            assert span.attributes[names.RPC_STATUS_CODE] == code
            assert span.attributes[names.ERROR_TYPE] == code
            assert span.attributes[names.OUTCOME] == names.OUTCOME_ERROR
        assert (client.status, server.status) == (STATUS_ERROR, server_status)


async def test_a_cancelled_unary_call_ends_both_spans(tmp_path: Path, recorded: Recording) -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def waiting(request: Any, context: Any) -> Any:
        try:
            with spans.span("inner"):
                begun.set()
                await asyncio.Event().wait()
        finally:
            ended.set()

    async with mesh(tmp_path, {EMBED: waiting}) as channel:
        pending = asyncio.ensure_future(_answer(embed_pb2_grpc.EmbedServiceStub(channel).Embed(embed.EmbedRequest())))
        await begun.wait()
        pending.cancel()
        await asyncio.wait_for(ended.wait(), 30)
    _assert_cancelled(recorded, EMBED)


@pytest.mark.parametrize("how", ["cancel", "task"])
async def test_a_cancelled_stream_ends_both_spans(tmp_path: Path, recorded: Recording, how: str) -> None:
    ended = asyncio.Event()

    async def endless(request: Any, context: Any) -> AsyncIterator[Any]:
        try:
            with spans.span("inner"):
                while True:
                    yield generator_pb2.GenerateEvent(delta="x" * 1_000)
        finally:
            ended.set()

    async with mesh(tmp_path, {GENERATE: endless}) as channel:
        call = generator_pb2_grpc.GeneratorServiceStub(channel).Generate(generator_pb2.GenerateRequest())
        if how == "task":
            seen = asyncio.Event()
            reading = asyncio.ensure_future(_read_all(call, seen))
            await seen.wait()
            reading.cancel()
        else:
            await call.read()
            call.cancel()
        await asyncio.wait_for(ended.wait(), 30)
    _assert_cancelled(recorded, GENERATE)


def _assert_cancelled(recorded: Recording, method: str) -> None:
    (client,), (server,) = recorded.named(method[1:], KIND_CLIENT), recorded.named(method[1:], KIND_SERVER)
    (inner,) = recorded.named("inner")
    assert inner.parent_id == server.span_id
    assert server.parent_id == client.span_id
    for span in (client, server, inner):
        assert span.attributes[names.OUTCOME] == names.OUTCOME_CANCELLED
    assert client.attributes[names.RPC_STATUS_CODE] == server.attributes[names.RPC_STATUS_CODE] == "CANCELLED"
    assert client.status == STATUS_ERROR


async def test_a_call_that_never_connects_ends_its_span(tmp_path: Path, recorded: Recording) -> None:
    config = mesh_config(tmp_path)
    async with open_channel(config, "127.0.0.1:1", server_role=Role.EMBED, identity="router") as channel:
        with pytest.raises(grpc.aio.AioRpcError):
            await embed_pb2_grpc.EmbedServiceStub(channel).Embed(embed.EmbedRequest(), timeout=30)
    (client,) = recorded.spans()
    assert client.attributes[names.RPC_STATUS_CODE] == "UNAVAILABLE"


async def test_timeouts_have_their_own_outcome(tmp_path: Path, recorded: Recording) -> None:
    async def waiting(request: Any, context: Any) -> Any:
        await asyncio.Event().wait()

    async with mesh(tmp_path, {EMBED: waiting}) as channel:
        with pytest.raises(grpc.aio.AioRpcError):
            await embed_pb2_grpc.EmbedServiceStub(channel).Embed(embed.EmbedRequest(), timeout=0.3)
    for span in recorded.named(EMBED[1:]):
        assert span.attributes[names.OUTCOME] == names.OUTCOME_TIMEOUT


async def test_health_and_reflection_are_not_traced(tmp_path: Path, recorded: Recording) -> None:
    async with mesh(tmp_path, {}) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        await stub.Check(health_pb2.HealthCheckRequest())
    assert recorded.spans() == []


async def test_a_suppressed_client_span_still_carries_the_context(tmp_path: Path, recorded: Recording) -> None:
    async with mesh(tmp_path, {EMBED: answer}) as channel:
        leg = spans.start_span("leg")
        with spans.use_span(leg), rpc.suppress_client_span():
            call = embed_pb2_grpc.EmbedServiceStub(channel).Embed(embed.EmbedRequest())
            await call
        leg.end()
    assert tree_text(recorded.spans()) == "\n".join(
        ["leg test", "  ostraka.v1.EmbedService/Embed SERVER test", "    inner test"]
    )


async def test_a_callers_own_trace_is_continued(tmp_path: Path, recorded: Recording) -> None:
    header = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    metadata = (("traceparent", header), ("tracestate", "vendor=1"))
    async with mesh(tmp_path, {EMBED: answer}) as channel:
        await embed_pb2_grpc.EmbedServiceStub(channel).Embed(embed.EmbedRequest(), metadata=metadata)
    (server,) = recorded.named(EMBED[1:], KIND_SERVER)
    assert (server.trace_id, server.parent_id) == (header[3:35], header[36:52])
    assert server.trace_state == "vendor=1"


@pytest.mark.parametrize("header", ["nonsense", "", "00-" + "0" * 32 + "-" + "0" * 16 + "-01"])
async def test_a_malformed_traceparent_begins_a_new_trace(tmp_path: Path, recorded: Recording, header: str) -> None:
    async with mesh(tmp_path, {EMBED: answer}) as channel:
        await embed_pb2_grpc.EmbedServiceStub(channel).Embed(embed.EmbedRequest(), metadata=(("traceparent", header),))
    (server,) = recorded.named(EMBED[1:], KIND_SERVER)
    assert server.parent_id == ""


async def test_telemetry_that_fails_never_fails_a_request(
    tmp_path: Path, recorded: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("the SDK is broken")

    before = spans.telemetry_failures()
    async with mesh(tmp_path, {EMBED: answer, GENERATE: stream}) as channel:
        monkeypatch.setattr(spans._Tracing.tracer, "start_span", broken)
        await embed_pb2_grpc.EmbedServiceStub(channel).Embed(embed.EmbedRequest())
        call = generator_pb2_grpc.GeneratorServiceStub(channel).Generate(generator_pb2.GenerateRequest())
        assert [event.delta async for event in call] == ["0", "1", "2"]
    assert spans.telemetry_failures() > before


async def test_spans_of_concurrent_calls_do_not_mix(tmp_path: Path, recorded: Recording) -> None:
    together = asyncio.Barrier(4)

    async def meeting(request: Any, context: Any) -> AsyncIterator[Any]:
        yield generator_pb2.GenerateEvent(delta=spans.current_trace_id())
        await together.wait()
        with spans.span("inner"):
            yield generator_pb2.GenerateEvent(delta=spans.current_trace_id())

    async def ask(channel: grpc.aio.Channel) -> set[str]:
        with spans.span("root"):
            call = generator_pb2_grpc.GeneratorServiceStub(channel).Generate(generator_pb2.GenerateRequest())
            return {event.delta async for event in call} | {spans.current_trace_id()}

    async with mesh(tmp_path, {GENERATE: meeting}) as channel:
        seen = await asyncio.gather(*(ask(channel) for _ in range(4)))
    assert all(len(trace_ids) == 1 for trace_ids in seen)
    assert len(set.union(*seen)) == 4
    assert all(span.kind == KIND_INTERNAL for span in recorded.named("inner"))


async def test_sync_stub_traces_and_measures(tmp_path: Path, recorded: Recording) -> None:
    async def refusing(request: Any, context: Any) -> Any:
        if request.model:
            raise InvalidArgument("no such model", "model")
        return embed.EmbedResponse(dim=3)

    config = mesh_config(tmp_path)
    async with running_server(config, {EMBED: refusing, GENERATE: stream}) as server:
        await asyncio.to_thread(_call_in_thread, config, server.port)
    tree = tree_text(recorded.spans(), [names.RPC_STATUS_CODE])
    assert "Embed CLIENT test status_code=INVALID_ARGUMENT\n  ostraka.v1.EmbedService/Embed SERVER" in tree
    assert len(recorded.named(EMBED[1:], KIND_CLIENT)) == 2
    assert len(recorded.named(GENERATE[1:], KIND_CLIENT)) == 1


def _call_in_thread(config: Config, port: int) -> None:
    credentials = channel_credentials(config.certs_dir, "admin")
    options = channel_options(Role.EMBED, 1 << 20)
    with grpc.secure_channel(f"127.0.0.1:{port}", credentials, options=options) as channel:
        unary = traced_unary(channel, EMBED, embed.EmbedRequest.SerializeToString, embed.EmbedResponse.FromString)
        good = unary(embed.EmbedRequest(), timeout_s=30)
        assert good.ok
        assert good.response.dim == 3
        assert len(good.trace_id) == 32
        assert 0 < good.first_s <= good.elapsed_s
        bad = unary(embed.EmbedRequest(model="x"), timeout_s=30)
        assert (bad.ok, bad.code, bad.details) == (False, grpc.StatusCode.INVALID_ARGUMENT, "no such model")
        with pytest.raises(grpc.RpcError):
            assert bad.response
        events = traced_stream(
            channel,
            GENERATE,
            generator_pb2.GenerateRequest.SerializeToString,
            generator_pb2.GenerateEvent.FromString,
        )(generator_pb2.GenerateRequest(), timeout_s=30)
        assert [event.delta for event in events.responses] == ["0", "1", "2"]


async def _answer(call: Any) -> Any:
    return await call


async def _read_all(call: Any, seen: asyncio.Event | None = None) -> None:
    async for _ in call:
        if seen is not None:
            seen.set()
