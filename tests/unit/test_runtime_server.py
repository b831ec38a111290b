"""One server, real TLS: errors, deadlines, health, drain, a port in use."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from observability import logs
from observability.logs import LogSettings
from ostraka.v1 import embed_pb2 as embed
from ostraka.v1 import embed_pb2_grpc, generator_pb2, generator_pb2_grpc
from services.runtime.channel import ChannelPool, open_channel
from services.runtime.config import Config
from services.runtime.deadline import current_deadline
from services.runtime.errors import (
    DeadlineExceeded,
    Internal,
    InvalidArgument,
    MeshError,
    NotFound,
    ResourceExhausted,
    StartError,
    Unimplemented,
    from_rpc_error,
)
from services.runtime.server import MeshServer
from services.runtime.tls import Role
from tests.inprocess import every_service, mesh_config, running_server

EMBED = "/ostraka.v1.EmbedService/Embed"
GENERATE = "/ostraka.v1.GeneratorService/Generate"
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


@contextlib.asynccontextmanager
async def mesh(config: Config, behaviors: dict[str, Any]) -> AsyncIterator[tuple[MeshServer, grpc.aio.Channel]]:
    async with (
        running_server(config, behaviors) as server,
        open_channel(config, f"127.0.0.1:{server.port}", server_role=Role.EMBED, identity="router") as channel,
    ):
        yield server, channel


async def failure_of(call: Any) -> MeshError:
    try:
        if hasattr(call, "__aiter__"):
            async for _ in call:
                continue
        else:
            await call
    except grpc.aio.AioRpcError as error:
        return from_rpc_error(error)
    raise AssertionError("the call succeeded")


def raising(error: Exception) -> dict[str, Any]:
    async def unary(request: Any, context: Any) -> Any:
        raise error

    async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
        yield generator_pb2.GenerateEvent(delta="first")
        raise error

    return {EMBED: unary, GENERATE: stream}


async def test_mesh_errors_arrive_whole_from_unary_and_streams(tmp_path: Path) -> None:
    sent = ResourceExhausted("the queue is full", "texts", retry_ms=250, metadata={"queue": "embed"})
    async with mesh(mesh_config(tmp_path), raising(sent)) as (_, channel):
        for call in (
            embed_pb2_grpc.EmbedServiceStub(channel).Embed(embed.EmbedRequest()),
            generator_pb2_grpc.GeneratorServiceStub(channel).Generate(generator_pb2.GenerateRequest()),
        ):
            got = await failure_of(call)
            assert type(got) is ResourceExhausted
            assert (got.message, got.field, got.retry_ms, got.metadata) == (
                "the queue is full", "texts", 250, {"queue": "embed"},
            )  # fmt: skip


async def test_a_defect_is_internal_and_keeps_its_secrets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with mesh(mesh_config(tmp_path), raising(KeyError("secret-path"))) as (_, channel):
        got = await failure_of(embed_pb2_grpc.EmbedServiceStub(channel).Embed(embed.EmbedRequest()))
    assert type(got) is Internal
    assert "secret-path" not in got.message
    assert "secret-path" in capsys.readouterr().err


async def test_a_downstream_status_keeps_its_meaning(tmp_path: Path) -> None:
    downstream = grpc.aio.AioRpcError(grpc.StatusCode.NOT_FOUND, grpc.aio.Metadata(), grpc.aio.Metadata(), "gone")
    async with mesh(mesh_config(tmp_path), raising(downstream)) as (_, channel):
        got = await failure_of(embed_pb2_grpc.EmbedServiceStub(channel).Embed(embed.EmbedRequest()))
    assert (type(got), got.message) == (NotFound, "gone")


async def test_a_method_nobody_wrote_is_unimplemented(tmp_path: Path) -> None:
    def generated(request: Any, context: Any) -> Any:
        context.set_code(grpc.StatusCode.UNIMPLEMENTED)
        raise NotImplementedError("Method not implemented!")

    async with mesh(mesh_config(tmp_path), {EMBED: generated}) as (_, channel):
        got = await failure_of(embed_pb2_grpc.EmbedServiceStub(channel).Embed(embed.EmbedRequest()))
    assert type(got) is Unimplemented
    assert got.message == "ostraka.v1.EmbedService/Embed is not served here"


async def test_an_abort_by_the_handler_passes(tmp_path: Path) -> None:
    async def aborting(request: Any, context: Any) -> Any:
        await context.abort(grpc.StatusCode.DATA_LOSS, "checksum")

    async with mesh(mesh_config(tmp_path), {EMBED: aborting}) as (_, channel):
        got = await failure_of(embed_pb2_grpc.EmbedServiceStub(channel).Embed(embed.EmbedRequest()))
    assert (got.code, got.message) == (grpc.StatusCode.DATA_LOSS, "checksum")


async def test_messages_over_the_limit_are_refused(tmp_path: Path) -> None:
    config = mesh_config(tmp_path, mesh={"message_bytes_max": 10_000}, router={"document_bytes_max": 5_000})
    async with mesh(config, {}) as (_, channel):
        call = embed_pb2_grpc.EmbedServiceStub(channel).Embed(embed.EmbedRequest(texts=["x" * 20_000]))
        assert (await failure_of(call)).code is grpc.StatusCode.RESOURCE_EXHAUSTED
        await embed_pb2_grpc.EmbedServiceStub(channel).Embed(embed.EmbedRequest(texts=["x" * 5_000]))


async def test_deadlines_default_maximum_and_reserve(tmp_path: Path) -> None:
    remaining: list[int] = []

    async def noting(request: Any, context: Any) -> Any:
        remaining.append(current_deadline().remaining_ms())
        return embed.EmbedResponse()

    async def noting_stream(request: Any, context: Any) -> AsyncIterator[Any]:
        remaining.append(current_deadline().remaining_ms())
        yield generator_pb2.GenerateEvent()

    limits = {"deadline_ms_default": 20_000, "deadline_ms_max": 60_000}
    async with mesh(mesh_config(tmp_path, mesh=limits), {EMBED: noting, GENERATE: noting_stream}) as (_, channel):
        stub = embed_pb2_grpc.EmbedServiceStub(channel)
        await stub.Embed(embed.EmbedRequest())
        await stub.Embed(embed.EmbedRequest(), timeout=40)
        await stub.Embed(embed.EmbedRequest(), timeout=3_600)
        async for _ in generator_pb2_grpc.GeneratorServiceStub(channel).Generate(
            generator_pb2.GenerateRequest(), timeout=40
        ):
            continue
    for got, given in zip(remaining, (20_000, 40_000, 60_000, 40_000), strict=True):
        assert given - 10_000 < got < given


async def test_an_overrun_is_cut_off_and_named(tmp_path: Path) -> None:
    cancelled = asyncio.Event()

    async def forever(request: Any, context: Any) -> Any:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    config = mesh_config(tmp_path, mesh={"deadline_ms_default": 50})
    async with mesh(config, {EMBED: forever}) as (_, channel):
        got = await failure_of(embed_pb2_grpc.EmbedServiceStub(channel).Embed(embed.EmbedRequest()))
        assert type(got) is DeadlineExceeded
        assert "was not done within 45 ms" in got.message
        assert not got.definite
        await asyncio.wait_for(cancelled.wait(), 10)


async def test_a_spent_deadline_is_refused_before_work(tmp_path: Path) -> None:
    called: list[Any] = []

    async def noting(request: Any, context: Any) -> Any:
        called.append(request)

    # Nothing is left of a deadline that is no longer than the reserve.
    config = mesh_config(tmp_path, mesh={"deadline_ms_default": 5})
    async with mesh(config, {EMBED: noting}) as (_, channel):
        got = await failure_of(embed_pb2_grpc.EmbedServiceStub(channel).Embed(embed.EmbedRequest()))
    assert type(got) is DeadlineExceeded
    assert got.definite
    assert called == []


async def test_a_handlers_own_timeout_is_not_the_deadline(tmp_path: Path) -> None:
    async with mesh(mesh_config(tmp_path), raising(TimeoutError("mine"))) as (_, channel):
        got = await failure_of(embed_pb2_grpc.EmbedServiceStub(channel).Embed(embed.EmbedRequest()))
    assert type(got) is Internal


async def test_a_port_in_use_is_an_error_that_says_so(tmp_path: Path) -> None:
    config = mesh_config(tmp_path)
    async with running_server(config) as server:
        with pytest.raises(StartError, match=rf"router: cannot listen on 127.0.0.1:{server.port}: the port is in use"):
            await MeshServer.start(
                config,
                service_name="router",
                role=Role.ROUTER,
                identity="router",
                address=f"127.0.0.1:{server.port}",
                servicers=[],
            )


async def test_health_is_earned_and_watched(tmp_path: Path) -> None:
    async with mesh(mesh_config(tmp_path), {}) as (server, channel):
        stub: Any = health_pb2_grpc.HealthStub(channel)
        for service in ("", "ostraka.v1.EmbedService", "ostraka.v1.ShardService"):
            assert (await stub.Check(health_pb2.HealthCheckRequest(service=service))).status == NOT_SERVING
        listed = (await stub.List(health_pb2.HealthListRequest())).statuses
        assert {status.status for status in listed.values()} == {NOT_SERVING}
        assert "ostraka.v1.RouterService" in listed
        watch = stub.Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == NOT_SERVING
        await server.set_serving(True)
        assert server.serving
        assert (await watch.read()).status == SERVING
        await server.set_serving(False)
        assert (await watch.read()).status == NOT_SERVING
        watch.cancel()


async def test_drain_finishes_calls_ends_watches_and_is_repeatable(tmp_path: Path) -> None:
    begun, release = asyncio.Event(), asyncio.Event()

    async def slow(request: Any, context: Any) -> Any:
        begun.set()
        await release.wait()
        return embed.EmbedResponse(dim=7)

    async with mesh(mesh_config(tmp_path), {EMBED: slow}) as (server, channel):
        await server.set_serving(True)
        stub: Any = health_pb2_grpc.HealthStub(channel)
        watch = stub.Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == SERVING
        call = asyncio.ensure_future(_answer(embed_pb2_grpc.EmbedServiceStub(channel).Embed(embed.EmbedRequest())))
        await begun.wait()
        stopping = asyncio.ensure_future(server.stop(30))
        # The watch ends although the drain goes on.
        while (message := await watch.read()) is not grpc.aio.EOF:
            assert message.status == NOT_SERVING
        assert not stopping.done()
        release.set()
        assert (await call).dim == 7
        await stopping
        await server.stop(30)


async def test_drain_is_bounded(tmp_path: Path) -> None:
    begun = asyncio.Event()

    async def forever(request: Any, context: Any) -> Any:
        begun.set()
        await asyncio.Event().wait()

    async with mesh(mesh_config(tmp_path), {EMBED: forever}) as (server, channel):
        call = asyncio.ensure_future(
            failure_of(embed_pb2_grpc.EmbedServiceStub(channel).Embed(embed.EmbedRequest(), timeout=60))
        )
        await begun.wait()
        await asyncio.wait_for(server.stop(0.05), 30)
        assert not (await call).definite


async def test_a_handler_learns_that_its_caller_went_away(tmp_path: Path) -> None:
    begun, cancelled = asyncio.Event(), asyncio.Event()

    async def waiting(request: Any, context: Any) -> Any:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    async with mesh(mesh_config(tmp_path), {EMBED: waiting}) as (_, channel):
        call = embed_pb2_grpc.EmbedServiceStub(channel).Embed(embed.EmbedRequest())
        pending = asyncio.ensure_future(_answer(call))
        await begun.wait()
        pending.cancel()
        await asyncio.wait_for(cancelled.wait(), 10)


async def test_reflection_lists_every_service(tmp_path: Path) -> None:
    config = mesh_config(tmp_path)
    async with (
        running_server(config) as server,
        open_channel(config, f"127.0.0.1:{server.port}", server_role=Role.EMBED, identity="admin") as channel,
    ):
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
        call = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="*")]))
        listed = {service.name for service in (await call.read()).list_services_response.service}
        call.cancel()
    assert listed == {service.full_name for service in every_service()}


async def test_each_call_is_one_line_in_the_access_log(tmp_path: Path) -> None:
    stream = io.StringIO()
    logs.configure(LogSettings("embed", "0"), stream)
    trace_id = "0af7651916cd43dd8448eb211c80319c"
    metadata = (("traceparent", f"00-{trace_id}-b7ad6b7169203331-01"),)
    try:
        async with mesh(mesh_config(tmp_path), raising(NotFound("no"))) as (_, channel):
            stub = embed_pb2_grpc.EmbedServiceStub(channel)
            await failure_of(stub.Embed(embed.EmbedRequest(), metadata=metadata))
            await stub.DescribeModel(embed.DescribeModelRequest())
            await failure_of(generator_pb2_grpc.GeneratorServiceStub(channel).Generate(generator_pb2.GenerateRequest()))
    finally:
        logs.shutdown()
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    calls = [line for line in lines if line["event"] == "rpc"]
    assert [(line["method"], line["role"], line["code"]) for line in calls] == [
        (EMBED, "router", "NOT_FOUND"),
        ("/ostraka.v1.EmbedService/DescribeModel", "router", "OK"),
        (GENERATE, "router", "NOT_FOUND"),
    ]
    assert calls[0]["trace_id"] == trace_id
    assert all(line["ms"] >= 0 for line in calls)


async def test_a_pool_goes_round_robin(tmp_path: Path) -> None:
    config = mesh_config(tmp_path)
    async with running_server(config) as first, running_server(config) as second:
        addresses = [f"127.0.0.1:{server.port}" for server in (first, second)]
        pool = ChannelPool(config, addresses, server_role=Role.EMBED, identity="router")
        turns = [pool.next() for _ in range(4)]
        assert turns[0] is turns[2]
        assert turns[1] is turns[3]
        assert turns[0] is not turns[1]
        for channel in turns[:2]:
            await embed_pb2_grpc.EmbedServiceStub(channel).DescribeModel(embed.DescribeModelRequest())
        await pool.close()


def test_invalid_argument_names_its_field() -> None:
    assert InvalidArgument("bad", "k").field == "k"


async def _answer(call: Any) -> Any:
    return await call
