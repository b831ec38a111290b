"""Asking a running mesh for a snapshot: one serving replica of every shard, and the mesh's manifest last."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack

import grpc

from ostraka.v1 import shard_pb2, shard_pb2_grpc
from services.runtime import topology_file
from services.runtime.channel import open_channel
from services.runtime.clock import SYSTEM_CLOCK
from services.runtime.config import Config
from services.runtime.deadline import Deadline
from services.runtime.errors import from_rpc_error
from services.runtime.tls import Role
from services.runtime.topology import Topology
from services.shard.object_store import open_store
from services.shard.snapshot_format import (
    FORMAT,
    MESH_FILE,
    CollectionEntry,
    MeshManifest,
    ShardEntry,
    SnapshotError,
    is_name,
)

ADMIN = "admin"
STATUS_S = 5.0
CALL_S = 60.0
"""A call that takes longer is made again, and joins the work that goes on at the node."""
BUSY_S = 0.5
AT_ONCE = 4
"""Shards copied at the same time, on different nodes."""
_BEST = ("SERVING", "READ_ONLY")
_AGAIN = (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED)
Progress = Callable[[str], None]


async def create(
    config: Config, destination: str, name: str, collections: Sequence[str], timeout_s: float, progress: Progress
) -> MeshManifest:
    """Take a snapshot called `name`. Raises SnapshotError, ObjectStoreError, ConfigError; it has no mesh.json then."""
    if not is_name(name):
        raise SnapshotError(f"{name!r} is not 1 to 64 letters, digits, '.', '-', '_'")
    topology = topology_file.load(config)
    for collection in collections:
        if collection not in topology.collections:
            raise SnapshotError(f"{config.path} has no [collections.{collection}]")
    store = await asyncio.to_thread(open_store, destination, config.snapshots.endpoint_url)
    if await asyncio.to_thread(store.exists, f"{name}/{MESH_FILE}"):
        raise SnapshotError(f"{destination} has a snapshot {name!r} already; choose another name")
    async with AsyncExitStack() as stack:
        stubs = {}
        for node, settings in config.nodes.items():
            channel = open_channel(config, settings.address, server_role=Role.SHARD, identity=ADMIN)
            stubs[node] = shard_pb2_grpc.ShardServiceStub(await stack.enter_async_context(channel))
        taking = _Taking(stubs, destination, name, Deadline.after_ms(timeout_s * 1_000), progress)
        entries = await taking.all(topology, collections or sorted(topology.collections))
    manifest = MeshManifest(
        format=FORMAT,
        name=name,
        created_ms=SYSTEM_CLOCK.wall_ms(),
        collections={
            collection: CollectionEntry(
                dim=config.collections[collection].dim,
                embedding_model=config.collections[collection].embedding_model,
                embedding_revision=config.collections[collection].embedding_revision,
                buckets=list(topology.collections[collection].buckets),
                shards=shards,
            )
            for collection, shards in entries.items()
        },
    )
    await asyncio.to_thread(store.put, f"{name}/{MESH_FILE}", manifest.to_bytes())
    return manifest


class _Taking:
    def __init__(
        self,
        stubs: Mapping[str, shard_pb2_grpc.ShardServiceAsyncStub],
        destination: str,
        name: str,
        deadline: Deadline,
        progress: Progress,
    ) -> None:
        self._stubs = stubs
        self._destination = destination
        self._name = name
        self._deadline = deadline
        self._progress = progress
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._states: dict[tuple[str, str, int], str] = {}

    async def all(self, topology: Topology, collections: Sequence[str]) -> dict[str, dict[str, ShardEntry]]:
        """Every shard's entry. Raises SnapshotError when a shard has no replica that can be copied."""
        await asyncio.gather(*(self._look(node) for node in self._stubs))
        wanted = [(name, shard) for name in collections for shard in sorted(topology.collections[name].shards)]
        tasks = [
            asyncio.create_task(self._shard(name, shard, self._order(topology, name, shard))) for name, shard in wanted
        ]
        try:
            found = await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
        entries: dict[str, dict[str, ShardEntry]] = {name: {} for name in collections}
        for (name, shard), entry in zip(wanted, found, strict=True):
            entries[name][str(shard)] = entry
        return entries

    async def _look(self, node: str) -> None:
        """Learn what the node's replicas are doing; a node that does not answer is asked last."""
        try:
            reply = await self._stubs[node].NodeStatus(shard_pb2.NodeStatusRequest(), timeout=STATUS_S)
        except grpc.aio.AioRpcError:
            return
        for replica in reply.replicas:
            self._states[node, replica.collection, replica.shard] = replica.state

    def _order(self, topology: Topology, collection: str, shard: int) -> list[str]:
        """Nodes to ask: those that serve first, begun at a different one for each shard."""
        nodes = [voter.node for voter in topology.collections[collection].shards[shard].voters]
        turned = nodes[shard % len(nodes) :] + nodes[: shard % len(nodes)]

        def rank(node: str) -> int:
            state = self._states.get((node, collection, shard), "")
            return _BEST.index(state) if state in _BEST else len(_BEST) + (not state)

        return sorted(turned, key=rank)

    async def _shard(self, collection: str, shard: int, nodes: Sequence[str]) -> ShardEntry:
        reasons = []
        async with self._slots:
            for node in nodes:
                try:
                    return await self._replica(node, collection, shard)
                except grpc.aio.AioRpcError as error:
                    reasons.append(f"{node}: {from_rpc_error(error)}")
        raise SnapshotError(f"no replica of {collection!r} shard {shard} could be copied: {'; '.join(reasons)}")

    async def _replica(self, node: str, collection: str, shard: int) -> ShardEntry:
        """Ask until there is an answer. Raises AioRpcError."""
        request = shard_pb2.SnapshotShardRequest(
            collection=collection, shard=shard, destination=self._destination, name=self._name
        )
        while True:
            timeout_s = min(CALL_S, self._deadline.remaining_s())
            try:
                reply = await self._stubs[node].SnapshotShard(request, timeout=timeout_s)
                break
            except grpc.aio.AioRpcError as error:
                if error.code() not in _AGAIN or self._deadline.expired():
                    raise
            await asyncio.sleep(BUSY_S)
        self._progress(f"{collection} shard {shard}: {reply.rows_live} rows, {reply.bytes} bytes from {node}")
        return ShardEntry(
            manifest=reply.manifest,
            sha256=reply.manifest_sha256.hex(),
            replica=reply.replica,
            rows_live=reply.rows_live,
            size=reply.bytes,
        )
