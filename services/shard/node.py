"""All replicas of one node: found in the topology, opened, kept equal to their peers, closed."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

import grpc

from observability.logs import logger
from ostraka.v1 import shard_pb2_grpc
from services.quorum.members import Members, ReplicaRef
from services.runtime.channel import open_channel
from services.runtime.clock import Clock
from services.runtime.config import Config
from services.runtime.tls import Role
from services.runtime.topology import ShardTopology, Topology
from services.runtime.topology_file import replica_problem
from services.shard.canary import Canary
from services.shard.damage import DamagedRowError
from services.shard.engine import Engine, Hooks
from services.shard.faiss_index import Kind
from services.shard.hosted import HostedReplica
from services.shard.lexical_search import lexical_of
from services.shard.node_codecs import NodeCodecs
from services.shard.repair import Repair
from services.shard.snapshot import remove_leftovers
from services.shard.statistics_exchange import StatisticsExchange
from services.shard.store import StoreError

BULK_PULLS_MAX = 2
_LOG = logger("shard")


class Node:
    """The replicas that the topology assigns to this node."""

    def __init__(self, config: Config, name: str, topology: Topology, clock: Clock) -> None:
        self.name = name
        self._config = config
        self._clock = clock
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self.replicas: Mapping[tuple[str, int], HostedReplica] = _assigned(config, name, topology)
        self.repairs: dict[tuple[str, int], Repair] = {}
        self.codecs = NodeCodecs(config, name, topology, clock)
        self.statistics = StatisticsExchange(self.replicas, topology, clock)
        self.loaded = False

    async def open(self) -> None:
        """Open every replica; one that cannot be opened is FAILED and the others go on."""
        loop = asyncio.get_running_loop()
        await asyncio.to_thread(self.codecs.open)
        await asyncio.gather(*(self._open(replica, loop) for replica in self.replicas.values()))
        self.loaded = True

    def start(self, addresses: Mapping[str, str]) -> None:
        """Begin gossip, repair and the exchange of codecs with the nodes at `addresses`, by node name."""
        stubs = {node: self._stub(node, address) for node, address in addresses.items() if node != self.name}
        pulls = asyncio.Semaphore(BULK_PULLS_MAX)
        for key, replica in self.replicas.items():
            if replica.engine is None:
                continue
            others = [voter.node for voter in replica.members.voters if voter.node != self.name]
            peers = {node: stubs[node] for node in others if node in stubs}
            repair = Repair(replica, peers, pulls)
            self.repairs[key] = repair
            self._tasks.append(asyncio.create_task(repair.run(), name=f"repair {replica.replica_id[:8]}"))
        self._tasks += self.codecs.start(self.replicas, stubs)
        self._tasks.append(asyncio.create_task(self.statistics.run(self._config, stubs), name="statistics"))

    async def ready(self) -> None:
        """Wait until every replica that can serve has caught up. Never returns when none can."""
        await asyncio.gather(*(repair.caught_up() for repair in self.repairs.values()))
        if self.replicas and not self.repairs:
            await asyncio.Event().wait()

    async def close(self) -> None:
        """Stop gossip and training, finish queued writes, close the files."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(asyncio.to_thread(replica.close) for replica in self.replicas.values()))
        await asyncio.gather(*(channel.close() for channel in self._channels.values()))

    def _stub(self, node: str, address: str) -> shard_pb2_grpc.ShardServiceAsyncStub:
        if node not in self._channels:
            self._channels[node] = open_channel(self._config, address, server_role=Role.SHARD, identity=self.name)
        return shard_pb2_grpc.ShardServiceStub(self._channels[node])

    async def _open(self, replica: HostedReplica, loop: asyncio.AbstractEventLoop) -> None:
        directory = self._config.replica_dir(self.name, replica.replica_id)
        if replica.failure:
            _LOG.error("replica failed", replica=replica.replica_id, shard=replica.shard, reason=replica.failure)
            return
        try:
            await asyncio.to_thread(remove_leftovers, directory)
            engine = await asyncio.to_thread(self._engine, directory, replica, loop)
        except (StoreError, DamagedRowError, OSError) as error:
            replica.failure = str(error)
            _LOG.error("replica failed", replica=replica.replica_id, shard=replica.shard, reason=str(error))
            return
        replica.canary = Canary(replica.replica_id, self._config.shard.recall_target, self._clock)
        replica.opened(engine, loop)
        if engine.damaged:
            engine.note_damage(tuple(engine.damaged))

    def _engine(self, directory: Path, replica: HostedReplica, loop: asyncio.AbstractEventLoop) -> Engine:
        key = (replica.collection, replica.shard)

        def damaged() -> None:
            repair = self.repairs.get(key)
            if repair is not None:
                loop.call_soon_threadsafe(repair.hurry)

        hooks = Hooks(published=replica.published, damaged=damaged)
        epoch = replica.members.epoch
        collection = self._config.collections[replica.collection]
        return Engine(
            directory,
            replica.replica_id,
            epoch,
            replica.dim,
            self._config.shard,
            self._clock,
            hooks,
            collection.metadata,
            lexical_of(collection.lexical),
            self.codecs.stores.get(replica.collection),
            Kind(collection.index),
        )


def _assigned(config: Config, name: str, topology: Topology) -> dict[tuple[str, int], HostedReplica]:
    found: dict[tuple[str, int], HostedReplica] = {}
    for collection, shard, voter in topology.replicas_of(name):
        record = topology.collections[collection].shards[shard]
        replica = HostedReplica(
            collection=collection,
            shard=shard,
            replica_id=voter.replica_id,
            node=name,
            dim=config.collections[collection].dim,
            members=_members(record),
            config=config.shard,
        )
        replica.failure = replica_problem(config, collection, shard, voter)
        found[collection, shard] = replica
    return found


def _members(record: ShardTopology) -> Members:
    voters = tuple(ReplicaRef(voter.replica_id, voter.node) for voter in record.voters)
    return Members(record.epoch, voters, record.read_quorum, record.write_quorum)
