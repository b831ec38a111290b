"""Channels to other processes of the mesh: mutual TLS, the server's role verified, traced, bounded."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence

import grpc

from observability.rpc import client_interceptors
from services.runtime.config import Config
from services.runtime.tls import Role, channel_credentials, role_name

KEEPALIVE_MS = 3_000
KEEPALIVE_TIMEOUT_MS = 4_000
"""A peer that vanished without closing (power, network) is noticed within KEEPALIVE_MS plus this: soon enough for
replicas to be equal 10 s after a link that died silently is whole again."""
CONNECT_TIMEOUT_MS = 5_000
"""For one attempt, TLS handshake included; gRPC calls it the minimum reconnect backoff."""
RECONNECT_MS_INITIAL = 100
RECONNECT_MS_MAX = 500
"""gRPC's own 120 s would keep a restarted node unused for minutes. A refused call says "again in 500 ms"
(RetryInfo); by then the connection has been tried again."""


def open_channel(config: Config, address: str, *, server_role: Role, identity: str) -> grpc.aio.Channel:
    """A channel to `address` ("host:port") that accepts only a server of `server_role`.

    `identity` names the caller's certificate in the certificate directory. Connects on first use. Raises
    ConfigError when the certificate cannot be used.
    """
    credentials = channel_credentials(config.certs_dir, identity)
    return grpc.aio.secure_channel(
        address,
        credentials,
        options=channel_options(server_role, config.mesh.message_bytes_max),
        interceptors=client_interceptors(address),
    )


def channel_options(server_role: Role, message_bytes_max: int) -> list[tuple[str, str | int]]:
    """gRPC options of every channel."""
    return [
        ("grpc.ssl_target_name_override", role_name(server_role)),
        ("grpc.max_send_message_length", message_bytes_max),
        ("grpc.max_receive_message_length", message_bytes_max),
        ("grpc.keepalive_time_ms", KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
        # gRPC also pings to measure bandwidth, and while such a ping is out it sends none of keepalive's: a connection
        # that dies then is noticed after the timeout of any ping, by default 60 s.
        ("grpc.http2.ping_timeout_ms", KEEPALIVE_TIMEOUT_MS),
        ("grpc.initial_reconnect_backoff_ms", RECONNECT_MS_INITIAL),
        ("grpc.min_reconnect_backoff_ms", CONNECT_TIMEOUT_MS),
        ("grpc.max_reconnect_backoff_ms", RECONNECT_MS_MAX),
        # A proxy from the environment must not see traffic between processes of the mesh.
        ("grpc.enable_http_proxy", 0),
    ]


class ChannelPool:
    """One channel per address, handed out round robin."""

    def __init__(self, config: Config, addresses: Sequence[str], *, server_role: Role, identity: str) -> None:
        assert addresses, "a pool needs an address"
        self.addresses = tuple(addresses)
        self.channels = tuple(
            open_channel(config, address, server_role=server_role, identity=identity) for address in addresses
        )
        self._turn = itertools.cycle(self.channels)

    def next(self) -> grpc.aio.Channel:
        """The channel whose turn it is."""
        return next(self._turn)

    async def close(self) -> None:
        """Close all; calls under way are cancelled."""
        await asyncio.gather(*(channel.close() for channel in self.channels))
