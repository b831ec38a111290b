"""Search legs, sent to nodes in batches: one RPC per node carries what several operations ask at once.

The number of RPCs is what search throughput costs. While a node answers as many calls as may be under way,
further legs wait together and travel in the next call; an idle node is asked at once. Every leg keeps its own
traceparents, so the shard tells the operations apart in its spans.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import grpc

from ostraka.v1 import passage_pb2, shard_pb2
from services.quorum.replica import Summary
from services.router.catalogue import Collection
from services.router.node_links import NodeLinks, trace_metadata
from services.router.read_types import LegReply, LegRequest
from services.router.search_mode import Ranking
from services.router.summary_rounds import SummaryRounds
from services.router.wire import SetReader, set_to_proto, status_from_proto
from services.runtime.errors import MeshError, from_rpc_error

# Calls of one kind under way per node: one being searched, one on the wire.
CALLS_PER_NODE = 2
# One call's queries, and hits they may return: a reply of a kilobyte per hit stays far below the message limit.
BATCH_QUERIES_MAX = 64
BATCH_HITS_MAX = 4_096


@dataclass(frozen=True, slots=True)
class ShardAnswer:
    """One shard's hits for the queries of one operation, and what it told of itself."""

    results: Sequence[shard_pb2.ShardQueryResult]
    index_epoch: str
    rows_live: int
    statistics_age_ms: int = 0
    """Of the oldest corpus statistics that BM25 used."""
    staleness_ms: int | None = None
    """Since the replica's last finished exchange with enough voters began."""


SearchReply = LegReply[ShardAnswer]


@dataclass(frozen=True, slots=True)
class Questions:
    """What one operation asks every shard: queries as messages, in order."""

    collection: Collection
    queries: Sequence[shard_pb2.SearchQuery]
    ranking: Ranking
    exact: bool
    filter: passage_pb2.Filter | None = None

    @property
    def hits_max(self) -> int:
        """Hits of one query in one shard's answer."""
        return self.ranking.depth * self.ranking.lists


@dataclass(eq=False, slots=True)
class _Waiting:
    questions: Questions
    request: LegRequest
    future: asyncio.Future[Mapping[int, SearchReply]]


_Key = tuple[str, str, int, int, bool, bytes, tuple[int, ...], int, bool]
"""Node, collection, depth, mode, exact, filter, shards, staleness, refresh: legs that differ in one are different
questions."""


@dataclass(slots=True)
class _Lane:
    key: _Key
    waiting: list[_Waiting] = field(default_factory=list)
    calls: int = 0
    scheduled: bool = False


class SearchLegs:
    """Every Search call of this coordinator."""

    def __init__(self, links: NodeLinks, reader: SetReader, search_wait_ms: int, rounds: SummaryRounds) -> None:
        """`rounds`: are told what every answer says of its replicas."""
        self._links, self._reader, self._search_wait_ms, self._rounds = links, reader, search_wait_ms, rounds
        self._lanes: dict[_Key, _Lane] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.sent = 0

    def send(self, questions: Questions, request: LegRequest) -> asyncio.Future[Mapping[int, SearchReply]]:
        """One operation's leg. Legs that require something travel alone; others share calls."""
        loop = asyncio.get_running_loop()
        waiting = _Waiting(questions, request, loop.create_future())
        if any(request.require.values()):
            self._begin(None, [waiting])
            return waiting.future
        key = _key(questions, request)
        lane = self._lanes.setdefault(key, _Lane(key))
        lane.waiting.append(waiting)
        if not lane.scheduled and lane.calls < CALLS_PER_NODE:
            lane.scheduled = True
            # When the loop comes round, so that operations that arrive in this turn share the call.
            loop.call_soon(self._fill, lane)
        return waiting.future

    @property
    def lanes(self) -> int:
        """Kinds of questions that wait or are under way."""
        return len(self._lanes)

    async def close(self) -> None:
        """Cancel what is under way."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _fill(self, lane: _Lane) -> None:
        lane.scheduled = False
        while lane.calls < CALLS_PER_NODE:
            batch = _take(lane)
            if not batch:
                # Filters make keys without number: a lane lives only while something waits or is under way.
                if not lane.calls and self._lanes.get(lane.key) is lane:
                    del self._lanes[lane.key]
                return
            lane.calls += 1
            self._begin(lane, batch)

    def _begin(self, lane: _Lane | None, batch: Sequence[_Waiting]) -> None:
        self.sent += 1
        task = asyncio.get_running_loop().create_task(self._call(batch))
        self._tasks.add(task)
        left = len(batch)

        def abandoned(future: asyncio.Future[Mapping[int, SearchReply]]) -> None:
            nonlocal left
            left -= 1
            if not left and future.cancelled():
                task.cancel()

        def ended(_: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            if lane is not None:
                lane.calls -= 1
                self._fill(lane)

        for waiting in batch:
            waiting.future.add_done_callback(abandoned)
        task.add_done_callback(ended)

    async def _call(self, batch: Sequence[_Waiting]) -> None:
        first = batch[0]
        message = _message(batch, self._search_wait_ms)
        traceparent = next(iter(first.request.traceparents.values()), "")
        arrivals = self._rounds.arrivals()
        try:
            reply = await self._links[first.request.node].search(
                message.SerializeToString(),
                timeout=max(waiting.request.timeout_s for waiting in batch),
                metadata=trace_metadata(traceparent),
            )
            self._deliver(batch, reply, arrivals)
        except grpc.aio.AioRpcError as error:
            _fail(batch, from_rpc_error(error))
        except MeshError as error:
            _fail(batch, error)
        except Exception as error:
            # A defect must reach the operations: nobody else waits for this task.
            _fail(batch, error)
        finally:
            for waiting in batch:
                waiting.future.cancel()

    def _deliver(self, batch: Sequence[_Waiting], reply: shard_pb2.SearchShardsResponse, arrivals: int) -> None:
        total = sum(len(waiting.questions.queries) for waiting in batch)
        summaries = {
            result.shard: Summary(
                replica_id=result.replica,
                status=status_from_proto(result.status),
                applied=self._reader.read(result.view),
                hlc_max=result.hlc_max,
                epoch=result.voting_epoch,
            )
            for result in reply.shards
        }
        first = batch[0]
        self._rounds.overheard(first.questions.collection.name, first.request.node, arrivals, summaries)
        start = 0
        for waiting in batch:
            end = start + len(waiting.questions.queries)
            if not waiting.future.done():
                waiting.future.set_result(
                    {result.shard: _part(result, summaries[result.shard], start, end, total) for result in reply.shards}
                )
            start = end


def _part(result: shard_pb2.ShardSearchResult, summary: Summary, start: int, end: int, total: int) -> SearchReply:
    """The slice of one shard's results that belongs to one operation."""
    if result.status != shard_pb2.REPLICA_STATUS_OK:
        name = shard_pb2.ReplicaStatus.Name(result.status)
        return LegReply(None, summary, f"{name}: {result.message}" if result.message else name)
    if len(result.results) != total:
        return LegReply(None, summary, f"answered {len(result.results)} of {total} queries")
    answer = ShardAnswer(
        result.results[start:end],
        result.index_epoch,
        result.rows_live,
        result.statistics_age_ms,
        result.staleness_ms if result.HasField("staleness_ms") else None,
    )
    return LegReply(answer, summary)


def _key(questions: Questions, request: LegRequest) -> _Key:
    chosen = questions.filter.SerializeToString(deterministic=True) if questions.filter is not None else b""
    return (
        request.node,
        questions.collection.name,
        questions.ranking.depth,
        questions.ranking.mode,
        questions.exact,
        chosen,
        tuple(request.require),
        request.max_staleness_ms,
        request.refresh,
    )


def _take(lane: _Lane) -> list[_Waiting]:
    """The next batch of a lane, oldest first; what was abandoned meanwhile is dropped."""
    batch: list[_Waiting] = []
    queries = 0
    while lane.waiting:
        waiting = lane.waiting[0]
        count, hits = len(waiting.questions.queries), waiting.questions.hits_max
        full = queries + count > BATCH_QUERIES_MAX or (queries + count) * hits > BATCH_HITS_MAX
        if batch and full:
            break
        lane.waiting.pop(0)
        if not waiting.future.done():
            batch.append(waiting)
            queries += count
    return batch


def _message(batch: Sequence[_Waiting], search_wait_ms: int) -> shard_pb2.SearchShardsRequest:
    questions, request = batch[0].questions, batch[0].request
    message = shard_pb2.SearchShardsRequest(
        epoch=max(questions.collection.members[shard].epoch for shard in request.require),
        collection=questions.collection.name,
        k=questions.ranking.depth,
        wait_ms=search_wait_ms,
        exact=questions.exact,
        include_payload=True,
        leg_role=request.role,
        mode=questions.ranking.mode,
        filter=questions.filter,
        max_staleness_ms=request.max_staleness_ms,
        refresh=request.refresh,
    )
    for waiting in batch:
        message.queries.extend(waiting.questions.queries)
    for shard, require in request.require.items():
        part = message.shards.add(shard=shard, holders=request.holders)
        if require:
            part.require.CopyFrom(set_to_proto(require))
        for waiting in batch:
            part.traceparents.extend([waiting.request.traceparents[shard]] * len(waiting.questions.queries))
    return message


def _fail(batch: Sequence[_Waiting], error: Exception) -> None:
    for waiting in batch:
        if not waiting.future.done():
            waiting.future.set_exception(error)
