"""A link that dies without a word: the caller gives its connection up and finds the server again."""

from __future__ import annotations

import asyncio
import random
import socket
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.runtime.channel import open_channel
from services.runtime.tls import Role
from tests.chaos.link_proxy import LinkProxy
from tests.inprocess import mesh_config, running_server

GRPC_PING_TIMEOUT_S = 60.0
"""What gRPC waits for the answer to a ping of its own unless told otherwise; meanwhile it sends none of keepalive's."""


class _Loopback:
    """No namespaces."""

    def socket_in(self, name: str) -> socket.socket:
        return socket.socket(socket.AF_INET, socket.SOCK_STREAM)


@pytest.mark.slow
async def test_a_connection_that_died_silently_is_given_up(tmp_path: Path) -> None:
    config = mesh_config(tmp_path)
    async with running_server(config, {}) as server:
        proxy = LinkProxy(_Loopback(), "", 0, f"127.0.0.1:{server.port}", random.Random(1))
        await proxy.start()
        address = f"127.0.0.1:{proxy.port}"
        async with open_channel(config, address, server_role=Role.EMBED, identity="router") as channel:
            stub = health_pb2_grpc.HealthStub(channel)

            async def answered() -> bool:
                try:
                    await stub.Check(health_pb2.HealthCheckRequest(), timeout=1.0)
                except grpc.aio.AioRpcError:
                    return False
                return True

            for _ in range(50):
                assert await answered()
            proxy.cut()
            assert not await answered()
            proxy.clear()
            async with asyncio.timeout(GRPC_PING_TIMEOUT_S / 2):
                while not await answered():
                    pass
        await proxy.close()
