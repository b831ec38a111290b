"""What the ShardService answers about buckets: rows and documents of each, and how often the replica was searched."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Final

from ostraka.v1 import shard_pb2
from services.quorum.buckets import BUCKETS, bucket_of
from services.runtime.clock import Clock
from services.runtime.deadline import Deadline
from services.runtime.errors import Unavailable
from services.shard.background import in_background
from services.shard.cpu_budget import CpuBudget
from services.shard.damage import RowName
from services.shard.hosted import HostedReplica
from services.shard.readers import Readers
from services.shard.store import StoreError

HEADS_PER_STEP: Final = 512
"""A few milliseconds, between which searches get the interpreter."""
RETRY_MS: Final = 1_000
VECTOR_BYTES: Final = 2
"""Of one dimension, as stored."""


@dataclass(slots=True)
class Held:
    """Live rows and documents by bucket."""

    rows: list[int] = field(default_factory=lambda: [0] * BUCKETS)
    documents: list[int] = field(default_factory=lambda: [0] * BUCKETS)


class BucketLoads:
    """Counts for one node; one replica at a time."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._began_s = clock.monotonic_s()
        self._one = asyncio.Lock()

    async def answer(
        self, replica: HostedReplica | None, request: shard_pb2.BucketLoadsRequest, deadline: Deadline
    ) -> shard_pb2.BucketLoadsResponse:
        """Count every head, within the background's share of a core.

        Raises Unavailable: ask another replica; DeadlineExceeded.
        """
        if replica is None or replica.engine is None or replica.reason or not replica.caught_up:
            why = "not hosted here" if replica is None else replica.reason or "the replica is catching up"
            raise Unavailable(f"shard {request.shard} of {request.collection!r}: {why}", retry_ms=RETRY_MS)
        engine = replica.engine
        budget = CpuBudget(engine.config.background_cpu)
        try:
            async with self._one:
                held = await in_background("bucket loads", lambda: count(engine.readers, budget, deadline))
        except StoreError as error:
            engine.note_failure(error)
            raise Unavailable(str(error), retry_ms=RETRY_MS) from error
        finally:
            budget.stop()
        return shard_pb2.BucketLoadsResponse(
            replica=replica.replica_id,
            rows=held.rows,
            documents=held.documents,
            searches=replica.searches,
            counted_ms=int((self._clock.monotonic_s() - self._began_s) * 1_000),
            row_bytes=VECTOR_BYTES * replica.dim,
        )


def count(readers: Readers, budget: CpuBudget, deadline: Deadline) -> Held:
    """Read all heads in steps, so no read transaction stays open. Raises StoreError, DeadlineExceeded, StoppedError.

    A head that fails its checksum is not counted: a peer mends it.
    """
    held, after = Held(), ""
    budget.begin()
    with readers.lend() as reader:
        while True:
            deadline.check("counting the rows of buckets")
            heads = reader.heads_after(after, HEADS_PER_STEP)
            for head in heads:
                if not isinstance(head, RowName) and head.passages:
                    bucket = bucket_of(head.document_id)
                    held.rows[bucket] += head.passages
                    held.documents[bucket] += 1
            if len(heads) < HEADS_PER_STEP:
                break
            after = heads[-1].document_id
            budget.pause()
    return held
