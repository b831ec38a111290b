"""A read at its level, whatever becomes of the members meanwhile: shards whose membership was out of date are read
again by the newest one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

from opentelemetry.trace import Span

from services.quorum.gtid import GtidSet
from services.router.catalogue import Collection
from services.router.membership import ATTEMPTS_MAX
from services.router.quorum_read import QuorumRead
from services.router.read_types import Freshness, LegSender, ReadTools, ShardOutcome
from services.runtime.deadline import Deadline

T = TypeVar("T")


async def steady_read(
    collection: Collection,
    shards: Iterable[int],
    freshness: Freshness,
    session: Mapping[tuple[str, int], GtidSet],
    tools: ReadTools,
    sender: Callable[[Collection], LegSender[T]],
    span_name: str,
    parent: Span,
    deadline: Deadline,
    max_staleness_ms: int = 0,
) -> tuple[Collection, list[ShardOutcome[T]]]:
    """(the membership that the last attempt read by, one outcome per shard). Raises Unavailable, ResourceExhausted."""
    wanted = list(dict.fromkeys(shards))
    left, patient = wanted, False
    outcomes: dict[int, ShardOutcome[T]] = {}
    for attempt in range(ATTEMPTS_MAX):
        if freshness in (Freshness.QUORUM, Freshness.LINEARIZABLE):
            collection = await tools.membership.serving(collection, left, deadline)
        read: QuorumRead[T] = QuorumRead(
            collection,
            left,
            freshness,
            session,
            tools,
            sender(collection),
            span_name,
            parent,
            deadline,
            max_staleness_ms,
            patient=patient or attempt == ATTEMPTS_MAX - 1,
        )
        outcomes.update({outcome.shard: outcome for outcome in await read.run()})
        left = [shard for shard in wanted if outcomes[shard].reply is None and outcomes[shard].moved]
        if not left or deadline.expired():
            break
        newer = await tools.membership.after(collection, deadline)
        if newer is None and patient:
            break
        collection, patient = newer or collection, newer is None
    return collection, [outcomes[shard] for shard in wanted]
