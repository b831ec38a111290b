"""The coordinator's connections to the shard nodes.

Channels are opened without the tracing interceptor: legs make their own spans and carry their own
traceparent, and a call without interceptors costs one task less.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import grpc

from ostraka.v1 import shard_pb2
from ostraka.v1.shard_pb2_grpc import ShardServiceStub
from services.runtime.channel import channel_options
from services.runtime.config import Config
from services.runtime.tls import Role, channel_credentials

if TYPE_CHECKING:
    from ostraka.v1.shard_pb2_grpc import ShardServiceAsyncStub

_WRITE = "/ostraka.v1.ShardService/Write"
_SEARCH = "/ostraka.v1.ShardService/Search"


class NodeLink:
    """One node: its stub, and two calls that take serialized requests, which go to several nodes unchanged."""

    def __init__(self, name: str, address: str, channel: grpc.aio.Channel) -> None:
        self.name, self.address, self.channel = name, address, channel
        self.stub: ShardServiceAsyncStub = ShardServiceStub(channel)
        self.write: grpc.aio.UnaryUnaryMultiCallable[bytes, shard_pb2.WriteResponse] = channel.unary_unary(
            _WRITE, request_serializer=_as_is, response_deserializer=shard_pb2.WriteResponse.FromString
        )
        self.search: grpc.aio.UnaryUnaryMultiCallable[bytes, shard_pb2.SearchShardsResponse] = channel.unary_unary(
            _SEARCH, request_serializer=_as_is, response_deserializer=shard_pb2.SearchShardsResponse.FromString
        )


class NodeLinks:
    """Every node by name."""

    def __init__(self, links: Mapping[str, NodeLink]) -> None:
        self._links = dict(links)

    @classmethod
    def open(cls, config: Config, identity: str) -> NodeLinks:
        """Channels to all nodes of the mesh file; they connect on first use. Raises ConfigError."""
        options = channel_options(Role.SHARD, config.mesh.message_bytes_max)
        links = {
            name: NodeLink(
                name,
                node.address,
                grpc.aio.secure_channel(node.address, channel_credentials(config.certs_dir, identity), options=options),
            )
            for name, node in config.nodes.items()
        }
        return cls(links)

    def __getitem__(self, node: str) -> NodeLink:
        return self._links[node]

    def __iter__(self) -> Iterator[NodeLink]:
        return iter(self._links.values())

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._links)

    async def close(self) -> None:
        """Close all; calls under way are cancelled."""
        await asyncio.gather(*(link.channel.close() for link in self))


def trace_metadata(traceparent: str) -> tuple[tuple[str, str], ...] | None:
    """Call metadata that makes the callee's span a child of the given one."""
    return (("traceparent", traceparent),) if traceparent else None


def _as_is(data: bytes) -> bytes:
    return data
