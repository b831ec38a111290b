"""What the ShardService answers to GetDocuments: whole documents of one view that contains what is required."""

from __future__ import annotations

from ostraka.v1 import shard_pb2
from services.quorum.gtid import GtidSet
from services.runtime.clock import Clock
from services.runtime.deadline import Deadline
from services.shard.covering import NotCoveredError, covering
from services.shard.damage import DamagedRowError
from services.shard.documents import read_documents
from services.shard.engine import Engine
from services.shard.freshness import TooStaleError, fresh_enough
from services.shard.hosted import HostedReplica
from services.shard.repair import Repair
from services.shard.search_pool import PoolFullError, SearchPool
from services.shard.store import StoreError
from services.shard.view import index_epoch
from services.shard.wire import set_to_wire


async def documents(
    replica: HostedReplica,
    engine: Engine,
    repair: Repair | None,
    pool: SearchPool,
    clock: Clock,
    request: shard_pb2.GetDocumentsRequest,
    require: GtidSet,
    deadline: Deadline,
) -> shard_pb2.GetDocumentsResponse:
    """A checked request's answer, whatever happens, with a status."""
    reply = shard_pb2.GetDocumentsResponse(replica=replica.replica_id, voting_epoch=engine.core.voting_epoch)
    ids, with_vectors, with_batches = list(request.document_ids), request.include_vectors, request.include_batches
    batches = GtidSet.EMPTY
    try:
        age_ms = await fresh_enough(replica, repair, clock, request.max_staleness_ms, deadline, refresh=request.refresh)
        if age_ms is not None:
            reply.staleness_ms = age_ms
        await covering(replica, repair, require, request.holders, request.wait_ms, deadline)
        applied, found, batches = await pool.run(
            lambda _: read_documents(engine.readers, ids, with_vectors, with_batches), deadline
        )
        if with_batches and engine.ledger.ops:
            batches = applied  # some batch is not remembered: the whole view stands for it
    except TooStaleError as error:
        reply.status, reply.message = shard_pb2.REPLICA_STATUS_TOO_STALE, str(error)
        applied, found = engine.view.applied, []
    except NotCoveredError as error:
        reply.status, reply.message = shard_pb2.REPLICA_STATUS_NOT_COVERED, str(error)
        applied, found = engine.view.applied, []
    except PoolFullError as error:
        reply.status, reply.message = shard_pb2.REPLICA_STATUS_OVERLOADED, str(error)
        return reply
    except DamagedRowError as error:
        engine.note_damage(error.names)
        reply.status, reply.message = shard_pb2.REPLICA_STATUS_FAILED, str(error)
        return reply
    except StoreError as error:
        engine.note_failure(error)
        reply.status, reply.message = shard_pb2.REPLICA_STATUS_FAILED, str(error)
        return reply
    else:
        reply.status = shard_pb2.REPLICA_STATUS_OK
    reply.view.CopyFrom(set_to_wire(applied))
    reply.index_epoch = index_epoch(engine.view.parts, applied)
    reply.documents.extend(found)
    if batches:
        reply.batches.CopyFrom(set_to_wire(batches))
    return reply
