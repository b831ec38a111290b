"""GetDocuments legs: one call per shard, since each shard is asked for other documents."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

import grpc

from ostraka.v1 import shard_pb2
from services.quorum.replica import Summary
from services.router.catalogue import Collection
from services.router.node_links import NodeLinks, trace_metadata
from services.router.read_types import LegReply, LegRequest
from services.router.wire import SetReader, set_to_proto, status_from_proto
from services.runtime.errors import from_rpc_error

GetReply = LegReply[shard_pb2.GetDocumentsResponse]


class GetLegs:
    """The GetDocuments calls of one operation."""

    def __init__(
        self,
        links: NodeLinks,
        reader: SetReader,
        collection: Collection,
        documents: Mapping[int, Sequence[str]],
        *,
        include_vectors: bool,
        wait_ms: int,
        include_batches: bool = False,
    ) -> None:
        """`documents`: ids per shard. `include_batches`: say which batches wrote what is returned."""
        self._include_batches = include_batches
        self._links, self._reader, self._collection, self._documents = links, reader, collection, documents
        self._include_vectors, self._wait_ms = include_vectors, wait_ms

    def send(self, request: LegRequest) -> asyncio.Future[Mapping[int, GetReply]]:
        """Ask one node for the documents of these shards."""
        return asyncio.ensure_future(self._send(request))

    async def _send(self, request: LegRequest) -> Mapping[int, GetReply]:
        shards = list(request.require)
        replies = await asyncio.gather(*(self._one(shard, request) for shard in shards))
        return dict(zip(shards, replies, strict=True))

    async def _one(self, shard: int, request: LegRequest) -> GetReply:
        epoch = self._collection.members[shard].epoch
        message = shard_pb2.GetDocumentsRequest(
            epoch=epoch,
            collection=self._collection.name,
            shard=shard,
            document_ids=self._documents[shard],
            holders=request.holders,
            wait_ms=self._wait_ms,
            include_vectors=self._include_vectors,
            include_batches=self._include_batches,
            max_staleness_ms=request.max_staleness_ms,
            refresh=request.refresh,
        )
        if require := request.require[shard]:
            message.require.CopyFrom(set_to_proto(require))
        try:
            reply = await self._links[request.node].stub.GetDocuments(
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
