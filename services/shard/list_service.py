"""What the ShardService answers about listing: the request checked, a covering view, one page."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from ostraka.v1 import shard_pb2
from services.quorum.gtid import GtidSet
from services.runtime.config import MetadataKind
from services.runtime.deadline import Deadline
from services.runtime.errors import InvalidArgument
from services.runtime.filter_check import condition_of
from services.shard.damage import DamagedRowError
from services.shard.engine import Engine
from services.shard.filtering import FILTER_FAILURES
from services.shard.listing import ListTask, list_documents
from services.shard.metadata_index import MetadataDamagedError
from services.shard.search_pool import PoolFullError, SearchPool
from services.shard.store import StoreError
from services.shard.validation import check_document_id
from services.shard.view import index_epoch
from services.shard.wire import WireError, set_from_wire, set_to_wire

LIMIT_MAX = 1_000
"""Documents in one page."""


def list_task(
    request: shard_pb2.ListShardDocumentsRequest, declared: Mapping[str, MetadataKind]
) -> tuple[ListTask, GtidSet]:
    """(what to list, what the view must contain). Raises InvalidArgument naming the field."""
    if not 1 <= request.limit <= LIMIT_MAX:
        raise InvalidArgument(f"must be 1 to {LIMIT_MAX}, not {request.limit}", "limit")
    if request.include_vectors and not request.include_passages:
        raise InvalidArgument("needs include_passages", "include_vectors")
    try:
        require = set_from_wire(request.require, "require")
        if request.after_document_id:
            check_document_id(request.after_document_id, "after_document_id")
    except WireError as error:
        raise InvalidArgument(str(error), error.field) from error
    condition = condition_of(request.filter, declared) if request.HasField("filter") else None
    task = ListTask(
        condition, request.after_document_id, request.limit, request.include_passages, request.include_vectors
    )
    return task, require


async def answer(
    engine: Engine, task: ListTask, pool: SearchPool, cover: Callable[[], Awaitable[str]], deadline: Deadline
) -> shard_pb2.ListShardDocumentsResponse:
    """One page, whatever happens, as a response with a status. `cover` waits until the newest view contains what is
    required and says why it does not."""
    reply = shard_pb2.ListShardDocumentsResponse(replica=engine.replica_id)
    applied = engine.view.applied
    try:
        if task.condition is not None and engine.damaged:
            raise DamagedRowError(tuple(engine.damaged))  # the view lacks them
        missing = await cover()
        if missing:
            reply.status, reply.message = shard_pb2.REPLICA_STATUS_NOT_COVERED, missing
            applied = engine.view.applied
        else:
            page = await pool.run(
                lambda _: list_documents(lambda: engine.view, engine.readers, engine.filters, task), deadline
            )
            reply.status, reply.more, applied = shard_pb2.REPLICA_STATUS_OK, page.more, page.applied
            reply.documents.extend(page.documents)
    except PoolFullError as error:
        reply.status, reply.message = shard_pb2.REPLICA_STATUS_OVERLOADED, str(error)
    except DamagedRowError as error:
        engine.note_damage(error.names)
        reply.status, reply.message = shard_pb2.REPLICA_STATUS_FAILED, str(error)
    except StoreError as error:
        engine.note_failure(error)
        reply.status, reply.message = shard_pb2.REPLICA_STATUS_FAILED, str(error)
    except FILTER_FAILURES as error:
        if isinstance(error, MetadataDamagedError):
            engine.mend_metadata(error.rids)
        reply.status, reply.message = shard_pb2.REPLICA_STATUS_FAILED, str(error)
    reply.view.CopyFrom(set_to_wire(applied))
    reply.index_epoch = index_epoch(engine.view.parts, applied)
    return reply
