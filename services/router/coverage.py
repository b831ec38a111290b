"""How each shard took part in a reply, as the contract says it; and the refusal when one is missing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from ostraka.v1 import passage_pb2, shard_pb2
from services.quorum.gtid import GtidSet
from services.quorum.session import encode_session, merge_sessions
from services.router.levels import Level
from services.router.read_request import Reading
from services.router.read_types import Freshness, ShardOutcome
from services.runtime.errors import Unavailable

T = TypeVar("T")

FRESHNESS: Mapping[Level.ValueType, Freshness] = {
    passage_pb2.CONSISTENCY_LEVEL_ONE: Freshness.ONE,
    passage_pb2.CONSISTENCY_LEVEL_SESSION: Freshness.SESSION,
    passage_pb2.CONSISTENCY_LEVEL_BOUNDED: Freshness.BOUNDED,
    passage_pb2.CONSISTENCY_LEVEL_QUORUM: Freshness.QUORUM,
    passage_pb2.CONSISTENCY_LEVEL_LINEARIZABLE: Freshness.LINEARIZABLE,
}
RETRY_MS = 200


def shard_coverage(
    outcome: ShardOutcome[T],
    level: Level.ValueType,
    index_epoch: str,
    rows_live: int,
    staleness_ms: int | None = None,
) -> passage_pb2.ShardCoverage:
    """One shard's part. `index_epoch` and `rows_live` are those of the view that was read, `staleness_ms` its age."""
    coverage = passage_pb2.ShardCoverage(
        shard=outcome.shard,
        hedges=outcome.hedges,
        retries=outcome.retries,
        voters_answered=outcome.voters_answered,
    )
    if outcome.reply is None:
        coverage.state = passage_pb2.ShardCoverage.STATE_UNAVAILABLE
        coverage.reason = outcome.reason
        return coverage
    coverage.state = passage_pb2.ShardCoverage.STATE_COMPLETE
    coverage.replica, coverage.node = outcome.reply.replica, outcome.reply.node
    coverage.index_epoch, coverage.rows_live = index_epoch, rows_live
    coverage.level = level
    if staleness_ms is not None and FRESHNESS[level] not in (Freshness.QUORUM, Freshness.LINEARIZABLE):
        coverage.staleness_ms = staleness_ms
    return coverage


def told_staleness(reply: shard_pb2.GetDocumentsResponse | shard_pb2.ListShardDocumentsResponse) -> int | None:
    """What the replica said of its age, if it did."""
    return reply.staleness_ms if reply.HasField("staleness_ms") else None


def refuse_partial(outcomes: Iterable[ShardOutcome[T]], reading: Reading) -> None:
    """Raise Unavailable, naming the shards, when one is missing and the caller did not allow that."""
    missing = [outcome for outcome in outcomes if outcome.reply is None]
    if not missing or reading.allow_partial:
        return
    reasons = "; ".join(f"shard {outcome.shard}: {outcome.reason}" for outcome in missing)
    raise Unavailable(
        f"collection {reading.collection.name!r} cannot be read at this level: {reasons}",
        retry_ms=RETRY_MS,
        reason="SHARD_UNAVAILABLE",
        metadata={"shards": ",".join(str(outcome.shard) for outcome in missing)},
        definite=True,
    )


def session_token(reading: Reading, outcomes: Sequence[ShardOutcome[T]]) -> bytes:
    """The given token united with the views that were read."""
    seen: dict[tuple[str, int], GtidSet] = {
        (reading.collection.name, outcome.shard): outcome.reply.view
        for outcome in outcomes
        if outcome.reply is not None
    }
    return encode_session(merge_sessions(reading.session, seen))
