"""Every method of every service, called by every role, without a certificate, and with a foreign one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from services.runtime.access import ALLOWED
from services.runtime.channel import channel_options, open_channel
from services.runtime.config import Config
from services.runtime.server import MeshServer
from services.runtime.tls import Role, create_dev_ca, issue, role_name
from tests.inprocess import every_method, mesh_config, running_server

MESSAGE_BYTES_MAX = 1 << 20
IDENTITY = {role: role.value for role in Role} | {Role.SHARD: "n1"}


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[tuple[Config, MeshServer]]:
    config = mesh_config(tmp_path)
    async with running_server(config) as running:
        yield config, running


def test_allow_list_is_total() -> None:
    assert set(ALLOWED) == set(every_method()), "services/runtime/access.py must list exactly the methods that exist"
    assert all(ALLOWED.values()), "a method nobody may call has no reason to exist"


@pytest.mark.parametrize("role", Role)
async def test_each_role_reaches_exactly_its_methods(server: tuple[Config, MeshServer], role: Role) -> None:
    config, running = server
    address = f"127.0.0.1:{running.port}"
    async with open_channel(config, address, server_role=Role.EMBED, identity=IDENTITY[role]) as channel:
        got = {method: await status_of(channel, method) for method in every_method()}
    for method, code in got.items():
        if role in ALLOWED[method]:
            assert code is grpc.StatusCode.OK, f"{role.value} should reach {method}, got {code.name}"
        else:
            assert code is grpc.StatusCode.PERMISSION_DENIED, f"{role.value} should not reach {method}, got {code.name}"


async def test_without_a_certificate_nothing_is_reached(server: tuple[Config, MeshServer]) -> None:
    config, running = server
    credentials = grpc.ssl_channel_credentials(root_certificates=(config.certs_dir / "ca.pem").read_bytes())
    await _nothing_is_reached(running.port, credentials)


async def test_with_a_certificate_of_a_foreign_ca_nothing_is_reached(
    server: tuple[Config, MeshServer], tmp_path: Path
) -> None:
    config, running = server
    foreign = tmp_path / "foreign"
    create_dev_ca(foreign)
    issue(foreign, "admin", Role.ADMIN)
    credentials = grpc.ssl_channel_credentials(
        root_certificates=(config.certs_dir / "ca.pem").read_bytes(),
        private_key=(foreign / "admin.key").read_bytes(),
        certificate_chain=(foreign / "admin.pem").read_bytes(),
    )
    await _nothing_is_reached(running.port, credentials)


async def test_a_certificate_with_two_roles_is_no_identity(server: tuple[Config, MeshServer]) -> None:
    config, running = server
    issue(config.certs_dir, "both", Role.CLIENT, hosts=[role_name(Role.ADMIN)])
    address = f"127.0.0.1:{running.port}"
    async with open_channel(config, address, server_role=Role.EMBED, identity="both") as channel:
        for method in every_method():
            assert await status_of(channel, method) is grpc.StatusCode.UNAUTHENTICATED, method


async def test_a_caller_refuses_a_server_of_another_role(server: tuple[Config, MeshServer]) -> None:
    config, running = server
    address = f"127.0.0.1:{running.port}"
    async with open_channel(config, address, server_role=Role.ROUTER, identity="client") as channel:
        assert await status_of(channel, "/grpc.health.v1.Health/Check") is grpc.StatusCode.UNAVAILABLE


async def test_plain_text_gets_no_answer(server: tuple[Config, MeshServer]) -> None:
    _, running = server
    reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
    writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00")
    async with asyncio.timeout(10):
        try:
            answer = await reader.read()
        except ConnectionResetError:
            answer = b""
    writer.close()
    # At most a TLS alert record (type 21); never an HTTP/2 frame.
    assert not answer or answer[0] == 21


async def status_of(channel: grpc.aio.Channel, method: str) -> grpc.StatusCode:
    """Status of an empty request, or OK as soon as a stream gave its first message."""
    descriptor = every_method()[method]
    kinds: dict[tuple[bool, bool], Any] = {
        (False, False): channel.unary_unary,
        (False, True): channel.unary_stream,
        (True, False): channel.stream_unary,
        (True, True): channel.stream_stream,
    }
    ask = kinds[descriptor.client_streaming, descriptor.server_streaming](method, _nothing, _nothing)
    call = ask(iter([b""]) if descriptor.client_streaming else b"", timeout=10)
    try:
        if descriptor.server_streaming:
            await call.read()
            call.cancel()
        else:
            await call
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


async def _nothing_is_reached(port: int, credentials: grpc.ChannelCredentials) -> None:
    options = channel_options(Role.EMBED, MESSAGE_BYTES_MAX)
    async with grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials, options=options) as channel:
        for method in every_method():
            assert await status_of(channel, method) is grpc.StatusCode.UNAVAILABLE, method


def _nothing(message: bytes) -> bytes:
    return message
