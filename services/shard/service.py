"""The ShardService of the contract: finds the replica, asks engine, search pool or repair, fills the reply."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import grpc

from observability import metrics
from observability.logs import logger
from ostraka.v1 import shard_pb2, shard_pb2_grpc
from services.quorum.gtid import GtidSet
from services.quorum.status import ReplicaStatus
from services.runtime.clock import Clock
from services.runtime.config import Config
from services.runtime.deadline import Deadline, current_deadline
from services.runtime.errors import DataLoss, FailedPrecondition, InvalidArgument, NotFound, Unavailable
from services.runtime.filter_check import condition_of
from services.shard import (
    codec_service,
    get_service,
    keys_service,
    list_service,
    membership_service,
    pulling,
    search,
    statistics_service,
    status,
)
from services.shard.bucket_loads import BucketLoads
from services.shard.covering import NotCoveredError, covering, readable, unable
from services.shard.damage import DamagedRowError
from services.shard.freshness import TooStaleError, fresh_enough
from services.shard.hosted import HostedReplica
from services.shard.lexical_queries import LexicalQueries
from services.shard.lexical_search import lexical_of
from services.shard.node import Node
from services.shard.search_pool import SearchPool
from services.shard.search_service import SearchService
from services.shard.snapshot_service import Snapshots
from services.shard.store import StoreError
from services.shard.validation import batch_of, check_document_id, mode_of, queries_of, texts_of
from services.shard.wire import WireError, set_from_wire, set_to_wire, status_to_wire

ANSWER_MS = 10
"""Kept of the deadline for sending the answer."""
LOADING_RETRY_MS = 200
Context = grpc.aio.ServicerContext
_LOG = logger("shard")


class ShardServicer(shard_pb2_grpc.ShardServiceServicer):
    """One node's replicas, over gRPC."""

    def __init__(self, config: Config, node: Node, pool: SearchPool, clock: Clock) -> None:
        self._config = config
        self._node = node
        self._pool = pool
        self._clock = clock
        self._searches = SearchService(node, pool, clock)
        self._snapshots = Snapshots(config, clock)
        self._buckets = BucketLoads(clock)

    async def Summary(
        self, request: shard_pb2.SummaryRequest, _context: Context[shard_pb2.SummaryRequest, shard_pb2.SummaryResponse]
    ) -> shard_pb2.SummaryResponse:
        """What each replica has applied. NOT_FOUND for an unknown collection."""
        self._check_collection(request.collection)
        shards = request.shards or [key[1] for key in self._node.replicas if key[0] == request.collection]
        if request.epochs and len(request.epochs) != len(shards):
            raise InvalidArgument(f"{len(request.epochs)} epochs for {len(shards)} shards", "epochs")
        epochs = request.epochs or [request.epoch] * len(shards)
        return shard_pb2.SummaryResponse(
            summaries=[
                self._summary(request.collection, shard, epoch) for shard, epoch in zip(shards, epochs, strict=True)
            ]
        )

    async def Write(
        self, request: shard_pb2.WriteRequest, _context: Context[shard_pb2.WriteRequest, shard_pb2.WriteResponse]
    ) -> shard_pb2.WriteResponse:
        """Apply one batch; status OK means durable and visible here."""
        replica = self._replica(request.collection, request.shard)
        if replica is None or replica.engine is None or replica.reason:
            return self._refused(replica, unable(replica), replica.reason if replica else "not hosted here")
        try:
            batch = batch_of(request, replica.dim, self._config.shard)
        except WireError as error:
            return self._refused(replica, ReplicaStatus.INVALID, str(error))
        engine = replica.engine
        verdict = engine.core.admit(batch, request.epoch, self._clock.wall_ms())
        if verdict is ReplicaStatus.MISSING_DEPENDENCY:
            self._want(replica, batch.depends.difference(engine.view.applied))
        if verdict is not ReplicaStatus.OK:
            return self._refused(replica, verdict, "")
        await asyncio.to_thread(engine.analyse, batch.passages)
        queued = engine.write(batch, request.epoch)
        if queued is None:
            return self._refused(replica, ReplicaStatus.OVERLOADED, "the write queue is full")
        reply = await asyncio.wrap_future(queued)
        metrics.add(metrics.WRITES, 1, {"collection": request.collection, "status": reply.status.name.lower()})
        return shard_pb2.WriteResponse(
            status=status_to_wire(reply.status),
            replica=replica.replica_id,
            hlc_max=reply.hlc_max,
            message=reply.message,
            queue_wait_us=reply.queue_wait_us,
            commit_us=reply.commit_us,
        )

    async def Search(
        self,
        request: shard_pb2.SearchShardsRequest,
        _context: Context[shard_pb2.SearchShardsRequest, shard_pb2.SearchShardsResponse],
    ) -> shard_pb2.SearchShardsResponse:
        """Search several shards of one collection. INVALID_ARGUMENT names the field; per shard, a status."""
        dim = self._check_collection(request.collection)
        if not 1 <= request.k <= self._config.router.k_max:
            raise InvalidArgument(f"k must be 1 to {self._config.router.k_max}, not {request.k}", "k")
        try:
            mode = mode_of(request)
            queries = queries_of(request, dim, self._config.router.queries_max)
            texts = [] if mode == search.DENSE else texts_of(request, self._config.router.text_bytes_max)
            requires = [set_from_wire(leg.require, "shards.require") for leg in request.shards]
        except WireError as error:
            raise InvalidArgument(str(error), error.field) from error
        deadline = current_deadline().minus_ms(ANSWER_MS)
        declared = self._config.collections[request.collection].metadata
        condition = condition_of(request.filter, declared) if request.HasField("filter") else None
        words = await self._words(request.collection, texts) if texts else None
        task = search.SearchTask(queries, request.k, request.exact, request.include_payload, condition, mode, words)
        legs = [
            self._searches.leg(request, leg, require, task, deadline)
            for leg, require in zip(request.shards, requires, strict=True)
        ]
        return shard_pb2.SearchShardsResponse(node=self._node.name, shards=await asyncio.gather(*legs))

    async def _words(self, collection: str, texts: Sequence[str]) -> LexicalQueries:
        lexical = lexical_of(self._config.collections[collection].lexical)
        return await asyncio.to_thread(LexicalQueries, texts, collection, lexical, self._node.statistics)

    async def GetDocuments(
        self,
        request: shard_pb2.GetDocumentsRequest,
        _context: Context[shard_pb2.GetDocumentsRequest, shard_pb2.GetDocumentsResponse],
    ) -> shard_pb2.GetDocumentsResponse:
        """Whole documents by id, tombstones included."""
        self._check_collection(request.collection)
        if not 1 <= len(request.document_ids) <= self._config.router.documents_max:
            limit = self._config.router.documents_max
            raise InvalidArgument(f"1 to {limit} ids, not {len(request.document_ids)}", "document_ids")
        try:
            require = set_from_wire(request.require, "require")
            for number, document_id in enumerate(request.document_ids):
                check_document_id(document_id, f"document_ids[{number}]")
        except WireError as error:
            raise InvalidArgument(str(error), error.field) from error
        deadline = current_deadline().minus_ms(ANSWER_MS)
        replica = self._replica(request.collection, request.shard)
        refusal, message = readable(replica)
        if refusal is not None or replica is None or replica.engine is None:
            return shard_pb2.GetDocumentsResponse(
                status=status_to_wire(refusal or ReplicaStatus.UNKNOWN_REPLICA), message=message
            )
        repair = self._node.repairs.get((replica.collection, replica.shard))
        return await get_service.documents(
            replica, replica.engine, repair, self._pool, self._clock, request, require, deadline
        )

    async def ListDocuments(
        self,
        request: shard_pb2.ListShardDocumentsRequest,
        _context: Context[shard_pb2.ListShardDocumentsRequest, shard_pb2.ListShardDocumentsResponse],
    ) -> shard_pb2.ListShardDocumentsResponse:
        """Live documents in the order of their ids, one page."""
        self._check_collection(request.collection)
        declared = self._config.collections[request.collection].metadata
        task, require = list_service.list_task(request, declared)
        deadline = current_deadline().minus_ms(ANSWER_MS)
        replica = self._replica(request.collection, request.shard)
        refusal, message = readable(replica)
        if refusal is not None or replica is None or replica.engine is None:
            return shard_pb2.ListShardDocumentsResponse(
                status=status_to_wire(refusal or ReplicaStatus.UNKNOWN_REPLICA), message=message
            )

        async def cover(replica: HostedReplica = replica) -> str:
            try:
                await self._cover(replica, require, request.holders, request.wait_ms, deadline)
            except NotCoveredError as error:
                return str(error)
            return ""

        repair = self._node.repairs.get((replica.collection, replica.shard))
        try:
            age_ms = await fresh_enough(
                replica, repair, self._clock, request.max_staleness_ms, deadline, refresh=request.refresh
            )
        except TooStaleError as error:
            return shard_pb2.ListShardDocumentsResponse(
                status=shard_pb2.REPLICA_STATUS_TOO_STALE, replica=replica.replica_id, message=str(error)
            )
        voting_epoch = replica.engine.core.voting_epoch
        reply = await list_service.answer(replica.engine, task, self._pool, cover, deadline)
        reply.voting_epoch = voting_epoch
        if age_ms is not None:
            reply.staleness_ms = age_ms
        return reply

    async def Cover(
        self, request: shard_pb2.CoverRequest, _context: Context[shard_pb2.CoverRequest, shard_pb2.CoverResponse]
    ) -> shard_pb2.CoverResponse:
        """Have these batches here, durably, pulled when they are not."""
        return await keys_service.cover(
            self._replica(request.collection, request.shard),
            self._node.repairs.get((request.collection, request.shard)),
            request,
            current_deadline().minus_ms(ANSWER_MS),
        )

    async def FindKeys(
        self,
        request: shard_pb2.FindKeysRequest,
        _context: Context[shard_pb2.FindKeysRequest, shard_pb2.FindKeysResponse],
    ) -> shard_pb2.FindKeysResponse:
        """Which applied batches carried these idempotency keys."""
        limit = self._config.router.documents_max
        return await keys_service.find_keys(
            self._replica(request.collection, request.shard),
            self._node.repairs.get((request.collection, request.shard)),
            request,
            limit,
        )

    async def Pull(
        self, request: shard_pb2.PullRequest, _context: Context[shard_pb2.PullRequest, shard_pb2.PullResponse]
    ) -> AsyncIterator[shard_pb2.PullResponse]:
        """Stream the current state of what the wanted batches touched. DATA_LOSS when own rows are damaged.

        In whatever epoch: it is state, not a vote, and whoever joins or falls behind is in another one.
        """
        replica = self._replica(request.collection, request.shard)
        if replica is None or replica.engine is None or replica.reason:
            raise FailedPrecondition("the replica cannot serve", "shard")
        try:
            want = set_from_wire(request.want, "want")
            have = set_from_wire(request.have, "have")
            async for bundle in pulling.stream(replica.engine, want, have):
                yield bundle
        except WireError as error:
            raise InvalidArgument(str(error), error.field) from error
        except DamagedRowError as error:
            replica.engine.note_damage(error.names)
            raise DataLoss(str(error)) from error
        except StoreError as error:
            replica.engine.note_failure(error)
            raise Unavailable(str(error)) from error

    async def Gossip(
        self, request: shard_pb2.GossipRequest, _context: Context[shard_pb2.GossipRequest, shard_pb2.GossipResponse]
    ) -> shard_pb2.GossipResponse:
        """Exchange applied sets and digests with a peer."""
        replica = self._replica(request.collection, request.shard)
        if replica is None or replica.engine is None or replica.reason:
            return shard_pb2.GossipResponse(status=status_to_wire(unable(replica)))
        epoch, view = replica.engine.core.epoch, replica.engine.view
        return shard_pb2.GossipResponse(
            status=shard_pb2.REPLICA_STATUS_OK,
            replica=replica.replica_id,
            applied=set_to_wire(view.applied),
            digest=view.digest_bytes,
            hlc_max=view.hlc_max,
            epoch=epoch,
        )

    async def Fence(
        self, request: shard_pb2.FenceRequest, _context: Context[shard_pb2.FenceRequest, shard_pb2.FenceResponse]
    ) -> shard_pb2.FenceResponse:
        """Refuse older epochs from now on, durably."""
        return await membership_service.fence(self._replica(request.collection, request.shard), request)

    async def CatchUp(
        self, request: shard_pb2.CatchUpRequest, _context: Context[shard_pb2.CatchUpRequest, shard_pb2.CatchUpResponse]
    ) -> shard_pb2.CatchUpResponse:
        """Have what a controller requires, pulled from the holders it names."""
        return await membership_service.catch_up(
            self._replica(request.collection, request.shard),
            self._node.repairs.get((request.collection, request.shard)),
            request,
            current_deadline().minus_ms(ANSWER_MS),
        )

    async def HostReplica(
        self,
        request: shard_pb2.HostReplicaRequest,
        _context: Context[shard_pb2.HostReplicaRequest, shard_pb2.HostReplicaResponse],
    ) -> shard_pb2.HostReplicaResponse:
        """Make room for a new replica."""
        return await membership_service.host(self._config, self._node.name, request)

    async def GetCodec(
        self, request: shard_pb2.GetCodecRequest, _context: Context[shard_pb2.GetCodecRequest, shard_pb2.CodecChunk]
    ) -> AsyncIterator[shard_pb2.CodecChunk]:
        """The collection's codec, if this node knows a greater one than the caller."""
        self._check_collection(request.collection)
        async for chunk in codec_service.codec_chunks(self._node.codecs.stores.get(request.collection), request):
            yield chunk

    async def SampleVectors(
        self,
        request: shard_pb2.SampleVectorsRequest,
        _context: Context[shard_pb2.SampleVectorsRequest, shard_pb2.SampleVectorsResponse],
    ) -> AsyncIterator[shard_pb2.SampleVectorsResponse]:
        """How many rows live in a shard, and vectors of some."""
        async for chunk in codec_service.sample_chunks(self._replica(request.collection, request.shard), request):
            yield chunk

    async def SnapshotShard(
        self,
        request: shard_pb2.SnapshotShardRequest,
        _context: Context[shard_pb2.SnapshotShardRequest, shard_pb2.SnapshotShardResponse],
    ) -> shard_pb2.SnapshotShardResponse:
        """Write a snapshot of this node's replica of one shard."""
        replica = self._replica(request.collection, request.shard)
        return await self._snapshots.take(replica, self._node.codecs.stores.get(request.collection), request)

    async def Statistics(
        self,
        request: shard_pb2.StatisticsRequest,
        _context: Context[shard_pb2.StatisticsRequest, shard_pb2.StatisticsResponse],
    ) -> AsyncIterator[shard_pb2.StatisticsResponse]:
        """What BM25 needs to know of a shard, unless the caller has it."""
        async for piece in statistics_service.statistics_chunks(
            self._replica(request.collection, request.shard), request
        ):
            yield piece

    async def BucketLoads(
        self,
        request: shard_pb2.BucketLoadsRequest,
        _context: Context[shard_pb2.BucketLoadsRequest, shard_pb2.BucketLoadsResponse],
    ) -> shard_pb2.BucketLoadsResponse:
        """What each bucket holds, and how often the replica was searched."""
        replica = self._replica(request.collection, request.shard)
        return await self._buckets.answer(replica, request, current_deadline().minus_ms(ANSWER_MS))

    async def NodeStatus(
        self,
        _request: shard_pb2.NodeStatusRequest,
        _context: Context[shard_pb2.NodeStatusRequest, shard_pb2.NodeStatusResponse],
    ) -> shard_pb2.NodeStatusResponse:
        """Every replica of this node, and what it is doing."""
        return status.node_status(self._node)

    def _check_collection(self, name: str) -> int:
        """The collection's dimensions. Raises NotFound; Unavailable while the node loads."""
        if name not in self._config.collections:
            raise NotFound(f"collection {name!r} is not in the mesh file", "collection")
        if not self._node.loaded:
            raise Unavailable("the node is loading its replicas", retry_ms=LOADING_RETRY_MS)
        return self._config.collections[name].dim

    def _replica(self, collection: str, shard: int) -> HostedReplica | None:
        self._check_collection(collection)
        return self._node.replicas.get((collection, shard))

    def _summary(self, collection: str, shard: int, epoch: int) -> shard_pb2.ReplicaSummary:
        replica = self._node.replicas.get((collection, shard))
        if replica is None or replica.engine is None or replica.reason:
            return shard_pb2.ReplicaSummary(shard=shard, status=status_to_wire(unable(replica)))
        summary = replica.engine.core.summary(epoch)
        return shard_pb2.ReplicaSummary(
            shard=shard,
            replica=summary.replica_id,
            status=status_to_wire(summary.status),
            applied=set_to_wire(summary.applied),
            hlc_max=summary.hlc_max,
            epoch=summary.epoch,
        )

    def _refused(self, replica: HostedReplica | None, verdict: ReplicaStatus, message: str) -> shard_pb2.WriteResponse:
        engine = replica.engine if replica else None
        return shard_pb2.WriteResponse(
            status=status_to_wire(verdict),
            replica=replica.replica_id if replica else "",
            hlc_max=engine.view.hlc_max if engine else 0,
            message=message,
        )

    def _want(self, replica: HostedReplica, gtids: GtidSet) -> None:
        repair = self._node.repairs.get((replica.collection, replica.shard))
        if repair is not None:
            repair.want(gtids)

    async def _cover(
        self, replica: HostedReplica, require: GtidSet, holders: Sequence[str], wait_ms: int, deadline: Deadline
    ) -> None:
        repair = self._node.repairs.get((replica.collection, replica.shard))
        await covering(replica, repair, require, holders, wait_ms, deadline)
