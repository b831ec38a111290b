"""Summary rounds shared by the operations that need one at the same time.

Per node and collection at most one Summary is under way (`services.quorum.coalesce` decides whom it serves).
Nodes are independent: a paused one delays nobody. Between two calls to one node there is a rest while searches take
long: a search under way cannot end sooner for a summary that is answered at once, and each call costs what a third of
a search costs. A write waits for its summary alone and ends the rest.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import grpc
from opentelemetry.trace import INVALID_SPAN, Span, SpanKind

from observability import names, spans
from ostraka.v1 import shard_pb2
from services.quorum.coalesce import Coalescer
from services.quorum.replica import Summary
from services.quorum.status import ReplicaStatus
from services.router.catalogue import Collection
from services.router.node_choice import HedgePace, NodeBook
from services.router.node_links import NodeLinks, trace_metadata
from services.router.wire import SetReader, summary_from_proto
from services.runtime.clock import Clock
from services.runtime.errors import MeshError, ResourceExhausted, from_rpc_error

# A node that has not answered by then counts as silent for this round, and the next may be sent.
SUMMARY_TIMEOUT_S = 1.0
# A node that refused a connection is not asked again for this long; it counts as silent meanwhile. Otherwise
# every operation would pay for a call to a node that is known to be dead.
REFUSED_S = 0.03
# A rest is this share of what a search leg takes, and never longer than the second.
PAUSE_SHARE = 0.5
PAUSE_S_MAX = 0.05

Told = dict[int, Summary]
Listener = Callable[[str, Told | None], None]
"""Called with a node and its summaries by shard; None when the node did not answer."""


@dataclass(eq=False, slots=True)
class Ticket:
    """One operation's place in the rounds; `leave` when its answers are no longer wanted."""

    listener: Listener
    parent: Span
    lanes: Sequence[_Lane]
    rounds: SummaryRounds
    number: int
    """Of its arrival."""
    active: bool = True

    def leave(self) -> None:
        """Nothing is heard from now on."""
        if self.active:
            self.active = False
            self.rounds.left(self)


@dataclass(eq=False, slots=True)
class _Lane:
    collection: Collection
    node: str
    request: shard_pb2.SummaryRequest
    coalescer: Coalescer[Ticket] = field(default_factory=Coalescer)
    refused_until_s: float = 0.0
    rests_until_s: float = 0.0
    pause: asyncio.TimerHandle | None = None
    """Until the next call is sent, for those who wait already."""


class SummaryRounds:
    """Every Summary call of this coordinator."""

    def __init__(
        self, links: NodeLinks, book: NodeBook, reader: SetReader, clock: Clock, waiters_max: int, pace: HedgePace
    ) -> None:
        self._links, self._book, self._reader, self._clock, self._pace = links, book, reader, clock, pace
        self._waiters_max = waiters_max
        self._waiters = 0
        self._arrivals = 0
        self._lanes: dict[str, Sequence[_Lane]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False
        self.sent = 0

    @property
    def waiters(self) -> int:
        """Operations that have joined and not left."""
        return self._waiters

    def join(self, collection: Collection, listener: Listener, parent: Span, *, urgent: bool = False) -> Ticket:
        """Ask every voter of the collection; `listener` hears of each node once. Raises ResourceExhausted.

        `urgent`: nothing else is under way for the operation meanwhile.
        """
        if self._waiters >= self._waiters_max:
            raise ResourceExhausted(f"{self._waiters} operations wait for a summary round", retry_ms=100)
        lanes = self._lanes.get(collection.name)
        if lanes is None or lanes[0].collection is not collection:
            found = lanes
            lanes = _lanes(collection)
            # Whoever began by older members keeps to them, alone; the others meet in the lanes of the newest.
            if found is None or not found[0].collection.newer_than(collection):
                self._lanes[collection.name] = lanes
        self._arrivals += 1
        ticket = Ticket(listener, parent, lanes, self, self._arrivals)
        self._waiters += 1
        for lane in lanes:
            if lane.coalescer.arrive(ticket):
                self._send_after_rest(lane, 0.0 if urgent else lane.rests_until_s)
            elif urgent and lane.pause is not None:
                self._send(lane)
        return ticket

    def arrivals(self) -> int:
        """How many operations have arrived: what is sent now tells all of them what they need to know."""
        return self._arrivals

    def overheard(self, collection: str, node: str, arrivals: int, told: Told) -> None:
        """A node's voters told of themselves in answer to something else, sent when so many had `arrived`.

        It counts as a Summary if it names every voter on the node, active in the epoch that the summary would ask for.
        """
        lane = next((lane for lane in self._lanes.get(collection, ()) if lane.node == node), None)
        if lane is None or not _covers(lane, told):
            return
        served = lane.coalescer.take(lambda ticket: ticket.number <= arrivals)
        if lane.pause is not None and not lane.coalescer.in_flight():
            _, again = lane.coalescer.landed()
            if not again:
                _end_pause(lane)
        self._rest(lane)
        self._tell(lane, served, told)

    def left(self, ticket: Ticket) -> None:
        """A ticket was given back; called by it, once."""
        self._waiters -= 1
        for lane in ticket.lanes:
            lane.coalescer.forget(ticket)

    async def close(self) -> None:
        """Cancel what is under way; nothing is sent any more."""
        self._closed = True
        for lanes in self._lanes.values():
            for lane in lanes:
                _end_pause(lane)
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _send_after_rest(self, lane: _Lane, until_s: float) -> None:
        left_s = until_s - self._clock.monotonic_s()
        if left_s <= 0:
            self._send(lane)
        else:
            lane.pause = asyncio.get_running_loop().call_later(left_s, self._send, lane)

    def _rest(self, lane: _Lane) -> None:
        pause_s = min(PAUSE_SHARE * self._pace.smoothed_s, PAUSE_S_MAX)
        lane.rests_until_s = self._clock.monotonic_s() + pause_s

    def _send(self, lane: _Lane) -> None:
        _end_pause(lane)
        lane.coalescer.board()
        while not lane.coalescer.in_flight():
            # Everyone who would have been served has left.
            _, again = lane.coalescer.landed()
            if not again:
                return
        if self._closed:
            return
        if self._clock.monotonic_s() < lane.refused_until_s:
            asyncio.get_running_loop().call_soon(self._land, lane, None)
            return
        self.sent += 1
        task = asyncio.get_running_loop().create_task(self._ask(lane))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _ask(self, lane: _Lane) -> None:
        riders = lane.coalescer.in_flight()
        span = spans.start_span(
            names.SPAN_SHARD_SUMMARY,
            SpanKind.CLIENT,
            {
                names.RPC_SYSTEM: names.RPC_SYSTEM_GRPC,
                names.RPC_METHOD: names.SPAN_SHARD_SUMMARY,
                names.NODE: lane.node,
                names.BATCH_SIZE: len(riders),
            },
            riders[0].parent if riders else INVALID_SPAN,
        )
        told: Told | None = None
        outcome = names.OUTCOME_CANCELLED
        try:
            reply = await self._links[lane.node].stub.Summary(
                lane.request, timeout=SUMMARY_TIMEOUT_S, metadata=trace_metadata(spans.traceparent(span))
            )
            told = {message.shard: summary_from_proto(message, self._reader) for message in reply.summaries}
            self._book.heard(lane.node, self._clock.monotonic_s())
            outcome = names.OUTCOME_OK
        except grpc.aio.AioRpcError as error:
            now_s = self._clock.monotonic_s()
            self._book.silent(lane.node, now_s)
            if error.code() is grpc.StatusCode.UNAVAILABLE:
                lane.refused_until_s = now_s + REFUSED_S
            outcome = names.OUTCOME_ERROR
            spans.record_error(span, from_rpc_error(error))
        except MeshError as error:
            outcome = names.OUTCOME_ERROR
            spans.record_error(span, error)
        finally:
            span.set_attribute(names.OUTCOME, outcome)
            spans.end_span(span)
            self._land(lane, told)

    def _land(self, lane: _Lane, told: Told | None) -> None:
        """Tell those the call served, and send the next for those that came meanwhile."""
        served, again = lane.coalescer.landed()
        self._rest(lane)
        if again:
            self._send_after_rest(lane, lane.rests_until_s)
        self._tell(lane, served, told)

    def _tell(self, lane: _Lane, served: Iterable[Ticket], told: Told | None) -> None:
        for ticket in served:
            if ticket.active:
                ticket.listener(lane.node, told)


def _end_pause(lane: _Lane) -> None:
    if lane.pause is not None:
        lane.pause.cancel()
        lane.pause = None


def _covers(lane: _Lane, told: Told) -> bool:
    """Whether this is what the lane's Summary would say, were it sent and answered by active voters."""
    for shard in lane.request.shards:
        summary = told.get(shard)
        if (
            summary is None
            or summary.status is not ReplicaStatus.OK
            or summary.replica_id != lane.collection.replica_of[shard, lane.node]
            or summary.epoch != lane.collection.members[shard].epoch
        ):
            return False
    return True


def _lanes(collection: Collection) -> Sequence[_Lane]:
    lanes = []
    for node in collection.nodes:
        shards = [shard for shard, name in collection.replica_of if name == node]
        epochs = [collection.members[shard].epoch for shard in shards]
        request = shard_pb2.SummaryRequest(epoch=max(epochs), collection=collection.name, shards=shards)
        if len(set(epochs)) > 1:
            request.epochs.extend(epochs)
        lanes.append(_Lane(collection, node, request))
    return lanes
