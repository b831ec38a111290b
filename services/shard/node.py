"""All replicas of one node: found in the topology, opened, kept equal to their peers, closed."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

import grpc

from observability.logs import logger
from ostraka.v1 import shard_pb2_grpc
from services.runtime.channel import open_channel
from services.runtime.clock import Clock
from services.runtime.config import Config
from services.runtime.tls import Role
from services.runtime.topology import Topology
from services.runtime.topology_file import mark_removed
from services.shard.canary import Canary
from services.shard.damage import DamagedRowError
from services.shard.engine import Engine, Hooks, ReplicaFailedError
from services.shard.faiss_index import Kind
from services.shard.hosted import HostedReplica
from services.shard.lexical_search import lexical_of
from services.shard.node_codecs import NodeCodecs
from services.shard.repair import Repair
from services.shard.roster import Key, Seat, seats
from services.shard.snapshot import remove_leftovers
from services.shard.statistics_exchange import StatisticsExchange
from services.shard.store import StoreError

BULK_PULLS_MAX = 2
_LOG = logger("shard")


class Node:
    """The replicas that the topology assigns to this node, now and as it changes."""

    def __init__(self, config: Config, name: str, topology: Topology, clock: Clock) -> None:
        self.name = name
        self._config = config
        self._clock = clock
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._repairing: dict[Key, asyncio.Task[None]] = {}
        self._stubs: dict[str, shard_pb2_grpc.ShardServiceAsyncStub] = {}
        self._pulls = asyncio.Semaphore(BULK_PULLS_MAX)
        self._topology = topology
        self.replicas: dict[Key, HostedReplica] = {
            key: self._hosted(key, seat) for key, seat in seats(config, name, topology).items()
        }
        self.repairs: dict[Key, Repair] = {}
        self.codecs = NodeCodecs(config, name, topology, clock)
        self.statistics = StatisticsExchange(self.replicas, topology, clock)
        self.loaded = False
        self._started = False
        self._begun = asyncio.Event()

    async def open(self) -> None:
        """Open every replica; one that cannot be opened is FAILED and the others go on."""
        loop = asyncio.get_running_loop()
        await asyncio.to_thread(self.codecs.open)
        await asyncio.to_thread(mark_removed, self._config, self.name, self._topology)
        await asyncio.gather(*(self._open(replica, loop) for replica in self.replicas.values()))
        self.loaded = True

    def start(self, addresses: Mapping[str, str]) -> None:
        """Begin gossip, repair and the exchange of codecs with the nodes at `addresses`, by node name."""
        self._stubs = {node: self._stub(node, address) for node, address in addresses.items() if node != self.name}
        self._started = True
        for key, replica in self.replicas.items():
            self._repair(key, replica)
        self._tasks += self.codecs.start(self.replicas, self._stubs)
        self._tasks.append(asyncio.create_task(self.statistics.run(self._config, self._stubs), name="statistics"))

    async def follow(self, topology: Topology) -> bool:
        """Take up a newer record: new epochs, replicas to begin with and to end. False: to be tried again."""
        await asyncio.to_thread(mark_removed, self._config, self.name, topology)
        assigned = await asyncio.to_thread(seats, self._config, self.name, topology)
        self._topology = topology
        await asyncio.to_thread(self.codecs.follow, topology)
        complete = True
        for key in sorted({*assigned, *self.replicas}):
            complete &= await self._follow(key, assigned.get(key))
        self.statistics.follow(topology)
        if self._started:
            self.codecs.restart(self.replicas, self._stubs)
        return complete

    async def ready(self) -> None:
        """Wait until every replica that can serve has caught up. Never returns while none of those assigned can."""
        while self.replicas and not self.repairs:
            self._begun.clear()
            await self._begun.wait()
        await asyncio.gather(*(repair.caught_up() for repair in self.repairs.values()))

    async def close(self) -> None:
        """Stop gossip and training, finish queued writes, close the files."""
        tasks = [*self._tasks, *self._repairing.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(asyncio.to_thread(replica.close) for replica in self.replicas.values()))
        await asyncio.gather(*(channel.close() for channel in self._channels.values()))

    def _stub(self, node: str, address: str) -> shard_pb2_grpc.ShardServiceAsyncStub:
        if node not in self._channels:
            self._channels[node] = open_channel(self._config, address, server_role=Role.SHARD, identity=self.name)
        return shard_pb2_grpc.ShardServiceStub(self._channels[node])

    async def _follow(self, key: Key, seat: Seat | None) -> bool:
        replica = self.replicas.get(key)
        if replica is not None and (seat is None or seat.replica.replica_id != replica.replica_id):
            await self._end(key, replica)
            replica = None
        if seat is None:
            return True
        if replica is None:
            await self._begin(key, seat)
            return True
        if seat.record.epoch <= replica.members.epoch:
            return True
        if replica.engine is not None and not replica.reason:
            try:
                # Durable first: whoever counts this replica by the new members may rely on it.
                await asyncio.wrap_future(replica.engine.learn(seat.record.epoch, seat.frozen))
            except (StoreError, ReplicaFailedError) as error:
                _LOG.warning("epoch not taken up", replica=replica.replica_id, reason=str(error))
                return False
        replica.members, replica.others = seat.members, seat.others
        if (repair := self.repairs.get(key)) is not None:
            repair.follow(self._peers(replica))
        _LOG.info(
            "epoch taken up",
            replica=replica.replica_id,
            collection=replica.collection,
            shard=replica.shard,
            epoch=seat.record.epoch,
            frozen=seat.frozen,
        )
        return True

    async def _begin(self, key: Key, seat: Seat) -> None:
        """Open a replica that the record names here since the node started."""
        replica = self._hosted(key, seat)
        await self._open(replica, asyncio.get_running_loop())
        self.replicas[key] = replica
        if self._started:
            self._repair(key, replica)
        self._begun.set()
        _LOG.info("replica begun", replica=replica.replica_id, collection=key[0], shard=key[1], node=self.name)

    async def _end(self, key: Key, replica: HostedReplica) -> None:
        """Stop a replica that the record no longer names; what it holds stays on disk and is never served again."""
        del self.replicas[key]
        self.repairs.pop(key, None)
        task = self._repairing.pop(key, None)
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await asyncio.to_thread(replica.close)
        _LOG.info("replica ended", replica=replica.replica_id, collection=key[0], shard=key[1], node=self.name)

    def _hosted(self, key: Key, seat: Seat) -> HostedReplica:
        collection, shard = key
        return HostedReplica(
            collection=collection,
            shard=shard,
            replica_id=seat.replica.replica_id,
            node=self.name,
            dim=self._config.collections[collection].dim,
            members=seat.members,
            others=seat.others,
            config=self._config.shard,
            failure=seat.problem,
            frozen_at_open=seat.frozen,
        )

    def _repair(self, key: Key, replica: HostedReplica) -> None:
        if replica.engine is None:
            return
        repair = Repair(replica, self._peers(replica), self._pulls)
        self.repairs[key] = repair
        self._repairing[key] = asyncio.create_task(repair.run(), name=f"repair {replica.replica_id[:8]}")

    def _peers(self, replica: HostedReplica) -> dict[str, shard_pb2_grpc.ShardServiceAsyncStub]:
        return {node: self._stubs[node] for node in sorted(replica.others) if node in self._stubs}

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
            frozen=replica.frozen_at_open,
        )
