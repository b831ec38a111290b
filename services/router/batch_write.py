"""One write batch on its way to its voters: sent to all, acknowledged at W, repeated to those that lag.

The voters' tasks outlive the caller for a short, bounded time: the voter that was slow or just restarted gets
the batch from here rather than through repair. Repeating is safe, because a gtid is applied once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import grpc
from opentelemetry.trace import Span

from observability import names
from ostraka.v1 import passage_pb2, shard_pb2
from services.quorum.members import Members, ReplicaRef
from services.quorum.rows import WriteBatch
from services.quorum.status import ReplicaStatus
from services.quorum.vote import Vote
from services.quorum.write import Outcome, WriteRound
from services.router.catalogue import Collection
from services.router.leg_span import SPAN_WRITE, LegSpan
from services.router.node_choice import NodeBook
from services.router.node_links import NodeLinks, trace_metadata
from services.router.wire import set_to_proto, status_from_proto, version_to_proto
from services.runtime.clock import Clock
from services.runtime.deadline import Deadline
from services.runtime.errors import from_rpc_error

# After the caller has its answer, how long voters that lag are still sent the batch; gossip repairs the rest.
BACKGROUND_S = 3.0
# When a voter says that the members have changed, how long the others may still decide the vote without it.
MOVED_GRACE_S = 0.1
# The pause before a repetition doubles up to this: hundreds of batches may wait for one dead node.
RETRY_PAUSE_S_MAX = 1.0


class BatchWrite:
    """One batch; `start` once, then `decided`, then `end` once."""

    def __init__(
        self,
        links: NodeLinks,
        book: NodeBook,
        clock: Clock,
        collection: Collection,
        shard: int,
        members: Members,
        batch: WriteBatch,
        retry_ms: int,
        parent: Span,
    ) -> None:
        """`members`: the shard's voters, with as many acknowledgements as the write's level needs."""
        self._links, self._book, self._clock = links, book, clock
        self._shard, self._retry_s, self._parent = shard, retry_ms / 1_000, parent
        self.round = WriteRound(members, batch)
        self._message = write_message(collection.name, shard, members.epoch, batch)
        self._tasks: list[asyncio.Task[None]] = []
        self._timer: asyncio.TimerHandle | None = None

    @property
    def size(self) -> int:
        """Bytes of the message."""
        return len(self._message)

    def start(self, deadline: Deadline) -> None:
        """Send to every voter."""
        self._vote: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._moved: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        timeout_s = deadline.remaining_s() + BACKGROUND_S
        self._tasks = [
            asyncio.get_running_loop().create_task(self._deliver(voter, timeout_s))
            for voter in self.round.members.voters
        ]

    async def overtaken(self, deadline: Deadline) -> bool:
        """Whether a voter said that the members are others before the vote was decided."""
        await asyncio.wait(
            [self._vote, self._moved], timeout=deadline.remaining_s(), return_when=asyncio.FIRST_COMPLETED
        )
        if not self._vote.done() and self._moved.done():
            await asyncio.wait([self._vote], timeout=deadline.at_most_ms(MOVED_GRACE_S * 1_000).remaining_s())
        return self._moved.done() and not self._vote.done()

    async def decided(self, deadline: Deadline) -> Outcome:
        """Wait until the vote is decided, every voter has had its say, or time is up."""
        done, _ = await asyncio.wait([self._vote], timeout=deadline.remaining_s())
        if done:
            self._vote.result()
        return self.round.outcome()

    def end(self, *, background: bool) -> Sequence[asyncio.Task[None]]:
        """The caller has its answer. Returns the tasks that go on; `background` False stops them now."""
        going = [task for task in self._tasks if not task.done()]
        # What was refused must not be sent after all.
        if background and self.round.outcome() is not Outcome.REFUSED and going:
            asyncio.get_running_loop().call_later(BACKGROUND_S, self._stop)
            return going
        self._stop()
        return going

    def _stop(self) -> None:
        for task in self._tasks:
            task.cancel()

    async def _deliver(self, voter: ReplicaRef, timeout_s: float) -> None:
        """Send to one voter until it applied the batch or refused it for good."""
        role, pause_s = names.LEG_PRIMARY, self._retry_s
        try:
            while voter in self.round.retryable():
                if role == names.LEG_PRIMARY or not self._pointless(voter):
                    await self._attempt(voter, timeout_s, role)
                    self._announce()
                    role = names.LEG_RETRY
                if voter in self.round.retryable():
                    await asyncio.sleep(pause_s)
                    pause_s = min(2 * pause_s, RETRY_PAUSE_S_MAX)
        except Exception as error:
            # A defect must reach the operation: nobody else waits for this task.
            if not self._vote.done():
                self._vote.set_exception(error)

    def _pointless(self, voter: ReplicaRef) -> bool:
        """The caller has its acknowledgement and the node has not been heard of since it failed."""
        return self.round.vote is Vote.WON and self._book.avoided(voter.node, self._clock.monotonic_s())

    async def _attempt(self, voter: ReplicaRef, timeout_s: float, role: str) -> None:
        span = LegSpan(SPAN_WRITE, voter.node, self._shard, role, self._parent)
        self.round.sent(voter.replica_id)
        needed = self.round.vote is Vote.PENDING
        try:
            reply = await self._links[voter.node].write(
                self._message, timeout=timeout_s, metadata=trace_metadata(span.traceparent)
            )
        except grpc.aio.AioRpcError as error:
            failure = from_rpc_error(error)
            self.round.on_failure(voter.replica_id, definite=failure.definite)
            self._book.silent(voter.node, self._clock.monotonic_s())
            span.end(names.OUTCOME_ERROR, error=error.code().name)
            return
        except asyncio.CancelledError:
            self.round.on_failure(voter.replica_id)
            span.end(names.OUTCOME_CANCELLED)
            raise
        self._book.heard(voter.node, self._clock.monotonic_s())
        status = status_from_proto(reply.status)
        if status is ReplicaStatus.OK and reply.replica != voter.replica_id:
            status = ReplicaStatus.UNKNOWN_REPLICA
        needed = needed and self.round.vote is Vote.PENDING
        self.round.on_reply(voter.replica_id, status)
        if status is ReplicaStatus.OK:
            span.end(names.OUTCOME_WON if needed else names.OUTCOME_LOST, reply.replica)
        else:
            span.end(names.OUTCOME_ERROR, reply.replica, status.name)

    def _announce(self) -> None:
        if self.round.moved and not self._moved.done():
            self._moved.set_result(None)
        if self.round.vote is not Vote.PENDING and not self._vote.done():
            self._vote.set_result(None)


def write_message(collection: str, shard: int, epoch: int, batch: WriteBatch) -> bytes:
    """The serialized WriteRequest, the same for every voter."""
    message = shard_pb2.WriteRequest(
        epoch=epoch,
        collection=collection,
        shard=shard,
        gtid=passage_pb2.Gtid(source=batch.gtid.source, seq=batch.gtid.seq),
        version=version_to_proto(batch.version),
        passages=[
            shard_pb2.PassageRow(
                document_id=row.document_id, ordinal=row.ordinal, vector_f16=row.vector, payload=row.payload
            )
            for row in batch.passages
        ],
        heads=[shard_pb2.HeadRow(document_id=head.document_id, passages=head.passages) for head in batch.heads],
    )
    for key in batch.keys:
        message.keys.add(document_id=key.document_id, key=key.key, content=key.content)
    if batch.depends:
        message.depends.CopyFrom(set_to_proto(batch.depends))
    return message.SerializeToString()
