"""What a write hears before it chooses its version: the highest clock reading of a read quorum of each shard.

A version above it is above every write acknowledged before this one began, whatever the wall clocks say.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping

from opentelemetry.trace import Span

from observability import names, spans
from services.quorum.status import ReplicaStatus
from services.quorum.summary import SummaryRound
from services.quorum.vote import Vote
from services.router.catalogue import Collection
from services.router.membership import Membership
from services.router.summary_rounds import SummaryRounds, Told
from services.runtime.deadline import Deadline

RETRY_PAUSE_S = 0.05


async def quorum_clocks(
    rounds: SummaryRounds,
    membership: Membership,
    collection: Collection,
    shards: Iterable[int],
    deadline: Deadline,
    parent: Span,
) -> tuple[Mapping[int, int], Collection]:
    """(shard -> highest clock reading, without the shards whose quorum was not reached by the deadline; the membership
    that was asked last). Raises ResourceExhausted, Unavailable when a shard stays frozen.
    """
    heard: dict[int, int] = {}
    left = set(shards)
    while left and not deadline.expired():
        collection = await membership.serving(collection, left, deadline)
        found, moved = await _one(rounds, collection, left, deadline, parent)
        heard.update(found)
        left -= heard.keys()
        if left and not (moved and await membership.after(collection, deadline)):
            await asyncio.sleep(min(RETRY_PAUSE_S, deadline.remaining_s()))
    return heard, collection


async def _one(
    rounds: SummaryRounds, collection: Collection, shards: Iterable[int], deadline: Deadline, parent: Span
) -> tuple[Mapping[int, int], bool]:
    """(what the shards with a quorum said, whether a replica said that the members are others)"""
    moved = False
    votes = {shard: SummaryRound(collection.members[shard]) for shard in shards}
    decided: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def on_summary(node: str, told: Told | None) -> None:
        nonlocal moved
        for shard, vote in votes.items():
            replica = collection.replica_of.get((shard, node))
            if replica is None:
                continue
            summary = told.get(shard) if told is not None else None
            if summary is None or summary.replica_id != replica:
                vote.fail(replica)
                moved = moved or (summary is not None and summary.status is not ReplicaStatus.FAILED)
            else:
                moved = moved or summary.status is ReplicaStatus.STALE_EPOCH
                vote.add(summary)
        if not decided.done() and all(vote.vote is not Vote.PENDING for vote in votes.values()):
            decided.set_result(None)

    span = spans.start_span(names.SPAN_QUORUM_SUMMARY, parent=parent)
    try:
        ticket = rounds.join(collection, on_summary, span, urgent=True)
        try:
            await asyncio.wait([decided], timeout=deadline.remaining_s())
        finally:
            ticket.leave()
    finally:
        spans.end_span(span)
    return {shard: vote.hlc_max() for shard, vote in votes.items() if vote.vote is Vote.WON}, moved
