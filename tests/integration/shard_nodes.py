"""Shard nodes inside the test's process, behind real TLS."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from ostraka.v1 import passage_pb2, shard_pb2, shard_pb2_grpc
from services.quorum.clock import Version, pack
from services.quorum.gtid import GtidSet
from services.quorum.rows import WriteBatch
from services.runtime import topology_file
from services.runtime.channel import open_channel
from services.runtime.clock import SYSTEM_CLOCK
from services.runtime.config import Config, parse
from services.runtime.server import MeshServer
from services.runtime.tls import Role, dev_certificates
from services.shard.hosted import HostedReplica
from services.shard.node import Node
from services.shard.search_pool import SearchPool
from services.shard.service import ShardServicer
from services.shard.wire import gtid_to_wire, head_to_wire, passage_to_wire, set_to_wire, version_to_wire
from tests.unit.shard_rows import DIM

COLLECTION = "docs"
POLL_S = 0.005
"""Between looks. A loop without a pause would keep the interpreter from the threads whose work it waits for."""
WAIT_S = 10.0


def nodes_config(directory: Path, nodes: int = 2, **shard: Any) -> Config:
    """`nodes` nodes, one collection of one shard with a replica on each, all certificates."""
    raw = {
        "mesh": {"drain_s": 1.0},
        "shard": {"disk_reserve_bytes": 0, "gossip_ms": 30, **shard},
        "nodes": {f"n{number}": {"address": f"127.0.0.1:{number}"} for number in range(1, nodes + 1)},
        "collections": {
            COLLECTION: {"shards": 1, "replicas": nodes, "read_quorum": nodes, "write_quorum": 1, "dim": DIM}
        },
    }
    config = parse(raw, directory / "mesh.toml", {})
    dev_certificates(config)
    topology_file.bootstrap(config)
    return config


class ShardNode:
    """One node; `peers` are told to it when gossip starts."""

    def __init__(self, config: Config, name: str) -> None:
        self.config = config
        self.name = name
        self.node = Node(config, name, topology_file.load(config), SYSTEM_CLOCK)
        self.pool = SearchPool(2, config.shard.search_queue_max, SYSTEM_CLOCK)
        self.server: MeshServer | None = None
        self.channel: grpc.aio.Channel | None = None

    async def start(self, port: int = 0) -> ShardNode:
        servicer = ShardServicer(self.config, self.node, self.pool, SYSTEM_CLOCK)
        self.server = await MeshServer.start(
            self.config,
            service_name="shard",
            role=Role.SHARD,
            identity=self.name,
            address=f"127.0.0.1:{port}",
            servicers=[(shard_pb2_grpc.add_ShardServiceServicer_to_server, servicer)],
        )
        await self.node.open()
        self.channel = open_channel(self.config, self.address, server_role=Role.SHARD, identity="router")
        return self

    @property
    def address(self) -> str:
        assert self.server is not None
        return f"127.0.0.1:{self.server.port}"

    @property
    def stub(self) -> shard_pb2_grpc.ShardServiceAsyncStub:
        assert self.channel is not None
        return shard_pb2_grpc.ShardServiceStub(self.channel)

    @property
    def replica(self) -> HostedReplica:
        return self.node.replicas[COLLECTION, 0]

    @property
    def applied(self) -> GtidSet:
        assert self.replica.engine is not None
        return self.replica.engine.view.applied

    async def stop(self) -> None:
        assert self.server is not None
        assert self.channel is not None
        await self.channel.close()
        await self.server.stop(0)
        await self.node.close()
        self.pool.close()


def gossip(*nodes: ShardNode) -> None:
    """Let the nodes talk to each other."""
    addresses = {each.name: each.address for each in nodes}
    for each in nodes:
        each.node.start(addresses)


async def eventually(condition: Callable[[], bool]) -> None:
    """Wait until `condition` holds; the loop's other tasks run meanwhile."""

    async def poll() -> None:
        while not condition():  # noqa: ASYNC110  # the condition has no event of its own
            await asyncio.sleep(POLL_S)

    await asyncio.wait_for(poll(), WAIT_S)


def now(entry: WriteBatch) -> Version:
    """The batch's version moved to the present, so that real clocks accept it."""
    return Version(pack(SYSTEM_CLOCK.wall_ms(), entry.version.hlc & 0xFFFF), entry.version.source)


def write_request(entry: WriteBatch, at: Version, epoch: int = 1) -> shard_pb2.WriteRequest:
    return shard_pb2.WriteRequest(
        epoch=epoch,
        collection=COLLECTION,
        shard=0,
        gtid=gtid_to_wire(entry.gtid),
        version=version_to_wire(at),
        passages=[passage_to_wire(row) for row in entry.passages],
        heads=[head_to_wire(row) for row in entry.heads],
        depends=set_to_wire(entry.depends),
    )


def search_request(
    entry: WriteBatch, *, require: GtidSet = GtidSet.EMPTY, holders: tuple[str, ...] = (), k: int = 5, wait_ms: int = 0
) -> shard_pb2.SearchShardsRequest:
    """A search for the first passage of `entry`."""
    vector = np.frombuffer(entry.passages[0].vector, dtype="<f2").astype("<f4")
    vector /= np.linalg.norm(vector)
    return shard_pb2.SearchShardsRequest(
        epoch=1,
        collection=COLLECTION,
        shards=[shard_pb2.ShardSearch(shard=0, require=set_to_wire(require), holders=holders)],
        queries=[shard_pb2.SearchQuery(vector=passage_pb2.Vector(dim=DIM, data=vector.tobytes()))],
        k=k,
        wait_ms=wait_ms,
        include_payload=True,
    )
