"""What a controller asks of shard nodes, over mutual TLS with the `admin` certificate."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AsyncExitStack

import grpc

from ostraka.v1 import passage_pb2, shard_pb2, shard_pb2_grpc
from services.quorum.gtid import GtidSet
from services.quorum.members import ReplicaRef
from services.runtime.channel import open_channel
from services.runtime.config import Config
from services.runtime.errors import from_rpc_error
from services.runtime.tls import Role
from services.shard.wire import set_from_wire, set_to_wire

ADMIN = "admin"
CALL_S = 5.0
PULL_S = 30.0
_REFUSED = (shard_pb2.REPLICA_STATUS_STALE_EPOCH, shard_pb2.REPLICA_STATUS_INVALID)


class OutdatedError(Exception):
    """A replica knows a newer record than this controller."""


class MemberCalls:
    """The shard nodes of one mesh, as seen from one shard. Problems are kept by node, for people."""

    def __init__(self, config: Config, stack: AsyncExitStack, collection: str, shard: int) -> None:
        """Channels live as long as `stack`."""
        self._config, self._stack, self._collection, self._shard = config, stack, collection, shard
        self._stubs: dict[str, shard_pb2_grpc.ShardServiceAsyncStub] = {}
        self.problems: dict[str, str] = {}

    async def host(self, replica: ReplicaRef) -> None:
        """Make room for a new replica. Raises MeshError."""
        request = shard_pb2.HostReplicaRequest(
            collection=self._collection, shard=self._shard, replica=replica.replica_id
        )
        try:
            await (await self._stub(replica.node)).HostReplica(request, timeout=CALL_S)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error

    async def applied(self, replica: ReplicaRef) -> GtidSet | None:
        """What a replica has applied; None when it does not answer."""
        request = shard_pb2.SummaryRequest(epoch=1, collection=self._collection, shards=[self._shard])
        try:
            (summary,) = (await (await self._stub(replica.node)).Summary(request, timeout=CALL_S)).summaries
        except grpc.aio.AioRpcError as error:
            self.problems[replica.node] = from_rpc_error(error).message
            return None
        if summary.replica != replica.replica_id:
            self.problems[replica.node] = "the replica is not served there"
            return None
        self.problems.pop(replica.node, None)
        return _gtids(summary.applied)

    async def fence(self, replica: ReplicaRef, epoch: int) -> GtidSet | None:
        """What it had applied once it was durably fenced; None when that did not come about. Raises OutdatedError."""
        request = shard_pb2.FenceRequest(
            epoch=epoch, collection=self._collection, shard=self._shard, replica=replica.replica_id
        )
        try:
            reply = await (await self._stub(replica.node)).Fence(request, timeout=CALL_S)
        except grpc.aio.AioRpcError as error:
            self.problems[replica.node] = from_rpc_error(error).message
            return None
        if reply.status in _REFUSED:
            raise OutdatedError(reply.message)
        return self._told(replica, reply)

    async def catch_up(
        self, replica: ReplicaRef, require: GtidSet, holders: Iterable[ReplicaRef], timeout_s: float = PULL_S
    ) -> GtidSet | None:
        """How far it got; None when it did not answer."""
        request = shard_pb2.CatchUpRequest(
            collection=self._collection,
            shard=self._shard,
            replica=replica.replica_id,
            require=set_to_wire(require),
            holders=[holder.node for holder in holders],
        )
        try:
            reply = await (await self._stub(replica.node)).CatchUp(request, timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            self.problems[replica.node] = from_rpc_error(error).message
            return None
        if reply.status == shard_pb2.REPLICA_STATUS_NOT_COVERED:
            self.problems.pop(replica.node, None)
            return _gtids(reply.applied)
        return self._told(replica, reply)

    async def states(self, nodes: Iterable[str]) -> Mapping[str, shard_pb2.ReplicaState]:
        """The replicas of this shard that the nodes host, by id."""
        found: dict[str, shard_pb2.ReplicaState] = {}
        for node in dict.fromkeys(nodes):
            try:
                status = await (await self._stub(node)).NodeStatus(shard_pb2.NodeStatusRequest(), timeout=CALL_S)
            except grpc.aio.AioRpcError as error:
                self.problems[node] = from_rpc_error(error).message
                continue
            self.problems.pop(node, None)
            for state in status.replicas:
                if (state.collection, state.shard) == (self._collection, self._shard):
                    found[state.replica] = state
        return found

    def _told(self, replica: ReplicaRef, reply: shard_pb2.FenceResponse | shard_pb2.CatchUpResponse) -> GtidSet | None:
        if reply.status != shard_pb2.REPLICA_STATUS_OK:
            name = shard_pb2.ReplicaStatus.Name(reply.status).removeprefix("REPLICA_STATUS_")
            self.problems[replica.node] = f"{name} {reply.message}".rstrip()
            return None
        self.problems.pop(replica.node, None)
        return _gtids(reply.applied)

    async def _stub(self, node: str) -> shard_pb2_grpc.ShardServiceAsyncStub:
        if node not in self._stubs:
            address = self._config.nodes[node].address
            channel = open_channel(self._config, address, server_role=Role.SHARD, identity=ADMIN)
            self._stubs[node] = shard_pb2_grpc.ShardServiceStub(await self._stack.enter_async_context(channel))
        return self._stubs[node]


def _gtids(message: passage_pb2.GtidSet) -> GtidSet:
    return set_from_wire(message, "applied")
