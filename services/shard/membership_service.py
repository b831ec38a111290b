"""What the ShardService answers to a controller: fences, catching up, and room for a new replica.

None of it asks for the caller's epoch: these calls are made while epochs change.
"""

from __future__ import annotations

import asyncio

from ostraka.v1 import shard_pb2
from services.quorum.status import ReplicaStatus
from services.runtime import topology_file
from services.runtime.config import Config
from services.runtime.deadline import Deadline
from services.runtime.errors import FailedPrecondition, InvalidArgument, NotFound, ResourceExhausted, Unavailable
from services.runtime.topology import REPLICA_ID_BYTES, Voter, is_replica_id
from services.shard.covering import NotCoveredError, covering, unable
from services.shard.engine import ReplicaFailedError
from services.shard.hosted import HostedReplica
from services.shard.repair import Repair
from services.shard.store import StoreError, StoreFullError
from services.shard.wire import WireError, set_from_wire, set_to_wire, status_to_wire

UNNAMED_MAX = 64
"""Directories of replicas on one node that the record does not name: removed ones, and those of changes given up."""


async def fence(replica: HostedReplica | None, request: shard_pb2.FenceRequest) -> shard_pb2.FenceResponse:
    """OK only once it is durable. Raises InvalidArgument."""
    if request.epoch < 1:
        raise InvalidArgument("an epoch is at least 1", "epoch")
    if (refusal := _refusal(replica, request.replica)) or replica is None or replica.engine is None:
        status, message = refusal or (ReplicaStatus.UNKNOWN_REPLICA, "")
        return shard_pb2.FenceResponse(status=status_to_wire(status), message=message)
    engine = replica.engine
    message = ""
    try:
        status = await asyncio.wrap_future(engine.fence(request.epoch))
    except StoreFullError as error:
        status, message = ReplicaStatus.READ_ONLY, str(error)
    except (StoreError, ReplicaFailedError, RuntimeError) as error:
        status, message = ReplicaStatus.FAILED, str(error)
    if status is ReplicaStatus.INVALID:
        message = f"the replica is active in epoch {request.epoch}; read the topology record again"
    elif status is ReplicaStatus.STALE_EPOCH:
        message = f"the replica is in epoch {engine.core.epoch} already; read the topology record again"
    return shard_pb2.FenceResponse(
        status=status_to_wire(status),
        replica=replica.replica_id,
        epoch=engine.core.epoch,
        applied=set_to_wire(engine.core.applied),
        hlc_max=engine.core.hlc_max,
        message=message,
    )


async def catch_up(
    replica: HostedReplica | None, repair: Repair | None, request: shard_pb2.CatchUpRequest, deadline: Deadline
) -> shard_pb2.CatchUpResponse:
    """Pull until everything required is here, everyone was asked or time is up. Raises InvalidArgument."""
    try:
        require = set_from_wire(request.require, "require")
    except WireError as error:
        raise InvalidArgument(str(error), error.field) from error
    if (refusal := _refusal(replica, request.replica)) or replica is None or replica.engine is None:
        status, message = refusal or (ReplicaStatus.UNKNOWN_REPLICA, "")
        return shard_pb2.CatchUpResponse(status=status_to_wire(status), message=message)
    reply = shard_pb2.CatchUpResponse(status=shard_pb2.REPLICA_STATUS_OK, replica=replica.replica_id)
    try:
        await covering(replica, repair, require, request.holders, 0, deadline)
    except NotCoveredError as error:
        reply.status, reply.message = shard_pb2.REPLICA_STATUS_NOT_COVERED, str(error)
    reply.applied.CopyFrom(set_to_wire(replica.engine.core.applied))
    return reply


async def host(config: Config, node: str, request: shard_pb2.HostReplicaRequest) -> shard_pb2.HostReplicaResponse:
    """Durable when it returns. Raises InvalidArgument, NotFound, FailedPrecondition, ResourceExhausted, Unavailable."""
    if not is_replica_id(request.replica):
        raise InvalidArgument(f"a replica id has {2 * REPLICA_ID_BYTES} hex digits", "replica")
    if request.collection not in config.collections:
        raise NotFound(f"collection {request.collection!r} is not in the mesh file", "collection")
    made = await asyncio.to_thread(_host, config, request.collection, request.shard, Voter(request.replica, node))
    if made:
        raise made
    return shard_pb2.HostReplicaResponse()


def _host(config: Config, collection: str, shard: int, replica: Voter) -> Exception | None:
    """Why the directory was not made. Blocks."""
    directory = config.replica_dir(replica.node, replica.replica_id)
    if directory.exists():
        return FailedPrecondition(
            f"{directory} is there already: a replica id is used once; add a replica under a new id", "replica"
        )
    named = {member.replica_id for member in topology_file.named(config)}
    unnamed = [path for path in directory.parent.glob("*") if is_replica_id(path.name) and path.name not in named]
    if len(unnamed) >= UNNAMED_MAX:
        return ResourceExhausted(
            f"{directory.parent} has {len(unnamed)} directories of replicas that are not in the mesh any more, "
            f"{unnamed[0].name} among them; delete them first"
        )
    try:
        topology_file.make_replica(config, collection, shard, replica)
    except OSError as error:
        return Unavailable(f"{directory} cannot be made: {error.strerror}")
    return None


def _refusal(replica: HostedReplica | None, wanted: str) -> tuple[ReplicaStatus, str] | None:
    if replica is None or replica.replica_id != wanted:
        return ReplicaStatus.UNKNOWN_REPLICA, f"replica {wanted[:64]} is not hosted here"
    if replica.engine is None or replica.reason:
        return unable(replica), replica.reason
    return None
