"""Upsert and Delete: documents into batches, batches to voters, and an honest outcome for each document.

A batch of a large document's passages changes nothing that can be seen until its head arrives, and the head
is sent only after every earlier batch was acknowledged. So a document whose head was never sent is REFUSED;
one whose head may have arrived somewhere is UNCERTAIN.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from opentelemetry.trace import Span

from observability import spans
from services.quorum.clock import HybridLogicalClock, Version
from services.quorum.gtid import Gtid, GtidSet
from services.quorum.rows import HeadRow, OpKey, PassageRow, WriteBatch
from services.quorum.write import Outcome
from services.router.batch_write import BatchWrite
from services.router.catalogue import Collection
from services.router.clock_round import quorum_clocks
from services.router.levels import WRITE_ONE, WRITE_QUORUM, WriteLevel, members_at
from services.router.membership import ATTEMPTS_MAX, Membership
from services.router.node_choice import NodeBook
from services.router.node_links import NodeLinks
from services.router.packing import Document, Parcel, pack
from services.router.summary_rounds import SummaryRounds
from services.runtime.clock import Clock
from services.runtime.config import Config
from services.runtime.deadline import Deadline
from services.runtime.errors import Unavailable

# Batches of one call under way: enough to keep three group commits busy, few enough to bound memory.
BATCHES_INFLIGHT = 8
# Batches that may go on after their caller has its answer, all calls together.
BACKGROUND_BATCHES_MAX = 256
BACKGROUND_BYTES_MAX = 64 * 1024 * 1024
# A quorum's clocks are waited for at most this share of the deadline; the rest is for the batches themselves.
CLOCK_SHARE = 0.6
FROZEN_REASON = "the shard's members are being changed, and the change did not end in time"


@dataclass(frozen=True, slots=True)
class Write:
    """One document to write; no rows means a tombstone."""

    document: Document
    retry_version: Version | None = None
    """Of an uncertain earlier attempt: this is that write."""
    key: OpKey | None = None
    """How the caller names this write, so that a repetition is known as one."""


@dataclass(frozen=True, slots=True)
class Written:
    """What became of one document."""

    outcome: Outcome
    version: Version
    acks: int
    shard: int
    reason: str


@dataclass(slots=True)
class _Job:
    """One parcel with everything needed to send it."""

    shard: int
    version: Version
    parcel: Parcel
    before: list[_Job]
    retried: bool
    finished: asyncio.Future[Written]
    level: WriteLevel.ValueType
    keys: Sequence[OpKey]
    gtid: Gtid | None = None


@dataclass(slots=True)
class _Background:
    batches: int = 0
    size: int = 0
    tasks: set[asyncio.Task[None]] = field(default_factory=set)


class Writing:
    """Every write of this coordinator."""

    def __init__(
        self,
        config: Config,
        links: NodeLinks,
        book: NodeBook,
        rounds: SummaryRounds,
        membership: Membership,
        clock: Clock,
        source: int,
    ) -> None:
        """`source`: 64 random bits of this start, never used before."""
        self._links, self._book, self._rounds, self._clock, self._source = links, book, rounds, clock, source
        self._membership = membership
        self._retry_ms = config.router.write_retry_ms
        self._rows_max, self._bytes_max = config.shard.batch_rows_max, config.shard.batch_bytes_max
        self._versions = HybridLogicalClock(source)
        self._sequences: dict[tuple[str, int], int] = {}
        self._background = _Background()

    async def write(
        self,
        collection: Collection,
        writes: Sequence[Write],
        deadline: Deadline,
        level: WriteLevel.ValueType = WRITE_QUORUM,
    ) -> tuple[list[Written], Mapping[tuple[str, int], GtidSet]]:
        """Outcomes in order, and what was acknowledged, for the session token.

        Raises ResourceExhausted; Unavailable, nothing sent, when a shard stays frozen.
        """
        parent = spans.current_span()
        shards = [collection.shard_of(write.document.document_id) for write in writes]
        if level == WRITE_ONE:
            # A quorum may not be there to ask; the level says that such versions follow the clocks alone.
            clocks: Mapping[int, int] = dict.fromkeys(shards, 0)
            collection = await self._membership.serving(collection, shards, deadline)
        else:
            clocks, collection = await quorum_clocks(
                self._rounds, self._membership, collection, set(shards), deadline.share(CLOCK_SHARE), parent
            )
        fresh = self._versions.next(self._clock.wall_ms(), max(clocks.values(), default=0))
        jobs = self._jobs(level, writes, shards, clocks, fresh)
        of_document = {document_id: job for job in jobs for document_id, _ in job.parcel.heads}
        slots = asyncio.Semaphore(BATCHES_INFLIGHT)
        async with asyncio.TaskGroup() as group:
            for job in jobs:
                group.create_task(self._run(job, collection, deadline, parent, slots))
        results = []
        for write, shard in zip(writes, shards, strict=True):
            sent = of_document.get(write.document.document_id)
            results.append(
                sent.finished.result() if sent is not None else _no_quorum(shard, write.retry_version or Version.ZERO)
            )
        acknowledged: dict[tuple[str, int], GtidSet] = {}
        for job in jobs:
            if job.gtid is not None and job.finished.result().outcome is Outcome.ACKNOWLEDGED:
                key = (collection.name, job.shard)
                acknowledged[key] = acknowledged.get(key, GtidSet.EMPTY).add(job.gtid)
        return results, acknowledged

    async def close(self) -> None:
        """Stop what goes on in the background."""
        tasks = tuple(self._background.tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _jobs(
        self,
        level: WriteLevel.ValueType,
        writes: Sequence[Write],
        shards: Sequence[int],
        clocks: Mapping[int, int],
        fresh: Version,
    ) -> list[_Job]:
        """Parcels per shard and version, for the shards whose quorum answered."""
        grouped: dict[tuple[int, Version, bool], list[Document]] = {}
        for write, shard in zip(writes, shards, strict=True):
            if shard in clocks:
                key = (shard, write.retry_version or fresh, write.retry_version is not None)
                grouped.setdefault(key, []).append(write.document)
        keyed = {write.document.document_id: write.key for write in writes if write.key is not None}
        loop = asyncio.get_running_loop()
        jobs: list[_Job] = []
        for (shard, version, retried), documents in grouped.items():
            made: list[_Job] = []
            for parcel in pack(documents, self._rows_max, self._bytes_max):
                before = [made[index] for index in parcel.depends]
                keys = [keyed[document_id] for document_id, _ in parcel.heads if document_id in keyed]
                made.append(_Job(shard, version, parcel, before, retried, loop.create_future(), level, keys))
            jobs.extend(made)
        return jobs

    async def _run(
        self, job: _Job, collection: Collection, deadline: Deadline, parent: Span, slots: asyncio.Semaphore
    ) -> None:
        """Send one parcel when what it depends on is acknowledged."""
        for earlier in job.before:
            if (await earlier.finished).outcome is not Outcome.ACKNOWLEDGED:
                reason = f"an earlier batch of the document was not acknowledged: {earlier.finished.result().reason}"
                job.finished.set_result(_never_sent(job, reason))
                return
        async with slots:
            if deadline.expired():
                job.finished.set_result(_never_sent(job, "the deadline passed before the batch was sent"))
                return
            job.finished.set_result(await self._send(job, collection, deadline, parent))

    async def _send(self, job: _Job, collection: Collection, deadline: Deadline, parent: Span) -> Written:
        key = (collection.name, job.shard)
        # Numbered when it is really sent: a number that is never used is a hole in every replica's set.
        sequence = self._sequences[key] = self._sequences.get(key, 0) + 1
        job.gtid = Gtid(self._source, sequence)
        depends = GtidSet.of(*(earlier.gtid for earlier in job.before if earlier.gtid is not None))
        batch = batch_of(job.parcel, job.gtid, job.version, depends, job.keys)
        maybe = job.retried
        for _ in range(ATTEMPTS_MAX):
            # Another batch of the call may have met a change of members since.
            collection = self._membership.newest(collection)
            if job.shard in collection.frozen:
                newer = await self._thawed(collection, job.shard, deadline)
                if newer is None:
                    return Written(
                        Outcome.UNCERTAIN if maybe else Outcome.REFUSED, job.version, 0, job.shard, FROZEN_REASON
                    )
                collection = newer
            members = members_at(collection.members[job.shard], job.level)
            writing = BatchWrite(
                self._links, self._book, self._clock, collection, job.shard, members, batch, self._retry_ms, parent
            )
            writing.start(deadline)
            try:
                outcome = await self._decided(writing, collection, deadline)
            finally:
                self._leave(writing)
            if outcome is Outcome.ACKNOWLEDGED or not writing.round.moved or deadline.expired():
                break
            # The very same batch to the members of now: whoever has applied it already says so again. What was
            # acknowledged in the old epoch alone does not count in the new one.
            maybe = maybe or outcome is Outcome.UNCERTAIN
            if await self._membership.after(collection, deadline) is None:
                break
        if outcome is Outcome.REFUSED and maybe:
            outcome = Outcome.UNCERTAIN
        reason = "" if outcome is Outcome.ACKNOWLEDGED else writing.round.reason()
        return Written(outcome, job.version, writing.round.acks, job.shard, reason)

    async def _decided(self, writing: BatchWrite, collection: Collection, deadline: Deadline) -> Outcome:
        """The vote's outcome, or what is known of it when a newer membership makes it pointless to wait."""
        if await writing.overtaken(deadline) and await self._membership.after(collection, deadline) is not None:
            return writing.round.outcome()
        return await writing.decided(deadline)

    async def _thawed(self, collection: Collection, shard: int, deadline: Deadline) -> Collection | None:
        """The next membership that serves; None when there is none by the deadline."""
        try:
            return await self._membership.serving(collection, (shard,), deadline)
        except Unavailable:
            return None

    def _leave(self, writing: BatchWrite) -> None:
        """Let the voters that lag have the batch, within bounds."""
        kept = self._background
        room = kept.batches < BACKGROUND_BATCHES_MAX and kept.size + writing.size <= BACKGROUND_BYTES_MAX
        tasks = writing.end(background=room)
        if not tasks:
            return
        kept.batches += 1
        kept.size += writing.size
        kept.tasks.update(tasks)
        left = len(tasks)

        def ended(task: asyncio.Task[None]) -> None:
            nonlocal left
            kept.tasks.discard(task)
            left -= 1
            if not left:
                kept.batches -= 1
                kept.size -= writing.size

        for task in tasks:
            task.add_done_callback(ended)


def batch_of(parcel: Parcel, gtid: Gtid, version: Version, depends: GtidSet, keys: Sequence[OpKey] = ()) -> WriteBatch:
    """The batch that a parcel becomes once it has a number."""
    return WriteBatch(
        gtid,
        version,
        tuple(
            PassageRow(document_id, row.ordinal, version, row.vector, row.payload)
            for document_id, row in parcel.passages
        ),
        tuple(HeadRow(document_id, passages, version) for document_id, passages in parcel.heads),
        depends,
        tuple(keys),
    )


def _never_sent(job: _Job, reason: str) -> Written:
    outcome = Outcome.UNCERTAIN if job.retried else Outcome.REFUSED
    return Written(outcome, job.version, 0, job.shard, reason)


def _no_quorum(shard: int, retry_version: Version) -> Written:
    """Nothing was sent, but what an earlier attempt sent may yet appear."""
    outcome = Outcome.UNCERTAIN if retry_version != Version.ZERO else Outcome.REFUSED
    return Written(outcome, retry_version, 0, shard, "no read quorum of the shard answered, so nothing was sent")
