"""ListDocuments legs: one call per shard, each for the shard's next documents behind the same id."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

import grpc

from ostraka.v1 import passage_pb2, shard_pb2
from services.quorum.replica import Summary
from services.router.catalogue import Collection
from services.router.node_links import NodeLinks, trace_metadata
from services.router.read_types import LegReply, LegRequest
from services.router.wire import SetReader, set_to_proto, status_from_proto
from services.runtime.errors import from_rpc_error

ListReply = LegReply[shard_pb2.ListShardDocumentsResponse]


@dataclass(frozen=True, slots=True)
class PageQuestion:
    """What every shard is asked."""

    collection: Collection
    filter: passage_pb2.Filter | None
    after: str
    limit: int
    include_passages: bool = False
    include_vectors: bool = False


class ListLegs:
    """The ListDocuments calls of one page."""

    def __init__(self, links: NodeLinks, reader: SetReader, question: PageQuestion, wait_ms: int) -> None:
        self._links, self._reader, self._question, self._wait_ms = links, reader, question, wait_ms

    def send(self, request: LegRequest) -> asyncio.Future[Mapping[int, ListReply]]:
        """Ask one node for these shards."""
        return asyncio.ensure_future(self._send(request))

    async def _send(self, request: LegRequest) -> Mapping[int, ListReply]:
        shards = list(request.require)
        replies = await asyncio.gather(*(self._one(shard, request) for shard in shards))
        return dict(zip(shards, replies, strict=True))

    async def _one(self, shard: int, request: LegRequest) -> ListReply:
        question = self._question
        epoch = question.collection.members[shard].epoch
        message = shard_pb2.ListShardDocumentsRequest(
            epoch=epoch,
            collection=question.collection.name,
            shard=shard,
            holders=request.holders,
            wait_ms=self._wait_ms,
            filter=question.filter,
            after_document_id=question.after,
            limit=question.limit,
            include_passages=question.include_passages,
            include_vectors=question.include_vectors,
            max_staleness_ms=request.max_staleness_ms,
            refresh=request.refresh,
        )
        if require := request.require[shard]:
            message.require.CopyFrom(set_to_proto(require))
        try:
            reply = await self._links[request.node].stub.ListDocuments(
                message, timeout=request.timeout_s, metadata=trace_metadata(request.traceparents[shard])
            )
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error
        summary = Summary(
            replica_id=reply.replica,
            status=status_from_proto(reply.status),
            applied=self._reader.read(reply.view),
            hlc_max=0,
            epoch=reply.voting_epoch,
        )
        if reply.status != shard_pb2.REPLICA_STATUS_OK:
            name = shard_pb2.ReplicaStatus.Name(reply.status)
            return LegReply(None, summary, f"{name}: {reply.message}" if reply.message else name)
        return LegReply(reply, summary)
