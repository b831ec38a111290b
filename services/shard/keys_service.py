"""What the ShardService answers to Cover and FindKeys: having batches, and knowing them by their callers' keys."""

from __future__ import annotations

import asyncio

from ostraka.v1 import shard_pb2
from services.quorum.gtid import GtidSet
from services.quorum.status import ReplicaStatus
from services.runtime.deadline import Deadline
from services.runtime.errors import InvalidArgument
from services.shard import op_keys
from services.shard.covering import NotCoveredError, covering, voting
from services.shard.engine import Engine
from services.shard.hosted import HostedReplica
from services.shard.repair import Repair
from services.shard.store import StoreError
from services.shard.validation import check_document_id, check_key
from services.shard.wire import (
    WireError,
    gtid_to_wire,
    key_from_wire,
    key_to_wire,
    set_from_wire,
    status_to_wire,
    version_to_wire,
)


async def cover(
    replica: HostedReplica | None, repair: Repair | None, request: shard_pb2.CoverRequest, deadline: Deadline
) -> shard_pb2.CoverResponse:
    """OK: everything required is in the view, so durable. Raises InvalidArgument."""
    try:
        require = set_from_wire(request.require, "require")
    except WireError as error:
        raise InvalidArgument(str(error), error.field) from error
    refusal, message = voting(replica, request.epoch)
    if refusal is not None or replica is None or replica.engine is None:
        return shard_pb2.CoverResponse(status=status_to_wire(refusal or ReplicaStatus.UNKNOWN_REPLICA), message=message)
    reply = shard_pb2.CoverResponse(status=shard_pb2.REPLICA_STATUS_OK, replica=replica.replica_id)
    try:
        await covering(replica, repair, require, request.holders, request.wait_ms, deadline)
    except NotCoveredError as error:
        reply.status, reply.message = shard_pb2.REPLICA_STATUS_NOT_COVERED, str(error)
    refusal, message = voting(replica, request.epoch)
    if refusal is not None:  # the epoch ended while it waited: a voter of that epoch no longer speaks
        reply.status, reply.message = status_to_wire(refusal), message
    return reply


async def find_keys(
    replica: HostedReplica | None, repair: Repair | None, request: shard_pb2.FindKeysRequest, keys_max: int
) -> shard_pb2.FindKeysResponse:
    """Every applied batch that carried one of the keys. Raises InvalidArgument."""
    if not 1 <= len(request.keys) <= keys_max:
        raise InvalidArgument(f"1 to {keys_max} keys, not {len(request.keys)}", "keys")
    wanted = [key_from_wire(key) for key in request.keys]
    try:
        for number, key in enumerate(wanted):
            check_document_id(key.document_id, f"keys[{number}].document_id")
            check_key(key, f"keys[{number}]")
    except WireError as error:
        raise InvalidArgument(str(error), error.field) from error
    refusal, message = voting(replica, request.epoch)
    if refusal is not None or replica is None or replica.engine is None:
        return shard_pb2.FindKeysResponse(
            status=status_to_wire(refusal or ReplicaStatus.UNKNOWN_REPLICA), message=message
        )
    engine = replica.engine
    reply = shard_pb2.FindKeysResponse(replica=replica.replica_id, status=shard_pb2.REPLICA_STATUS_FAILED)
    try:
        found = await asyncio.to_thread(_find, engine, [(key.document_id, key.key) for key in wanted])
    except op_keys.KeyDamagedError as error:
        if error.gtid is not None and error.gtid in engine.view.applied:
            engine.ledger.add_ops(GtidSet.of(error.gtid))  # a peer's copy of the operation brings its keys
            if repair is not None:
                repair.hurry()
        reply.message = str(error)
    except StoreError as error:
        engine.note_failure(error)
        reply.message = str(error)
    else:
        reply.found.extend(found)
        reply.status = shard_pb2.REPLICA_STATUS_OK
    refusal, message = voting(replica, request.epoch)
    if refusal is not None:  # as in `cover`
        reply.status, reply.message = status_to_wire(refusal), message
    return reply


def _find(engine: Engine, wanted: list[tuple[str, str]]) -> list[shard_pb2.FoundKey]:
    with engine.readers.lend() as reader, reader.database.reading():
        return [
            shard_pb2.FoundKey(key=key_to_wire(key), gtid=gtid_to_wire(gtid), version=version_to_wire(version))
            for document_id, name in wanted
            for key, gtid, version in op_keys.find(reader.database, document_id, name)
        ]
