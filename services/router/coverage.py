"""How each shard took part in a reply, as the contract says it; and the refusal when one is missing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from ostraka.v1 import passage_pb2
from services.quorum.gtid import GtidSet
from services.quorum.session import encode_session, merge_sessions
from services.router.read_request import Level, Reading
from services.router.read_types import Freshness, ShardOutcome
from services.runtime.errors import Unavailable

T = TypeVar("T")

FRESHNESS: Mapping[Level.ValueType, Freshness] = {
    passage_pb2.CONSISTENCY_LEVEL_ONE: Freshness.ONE,
    passage_pb2.CONSISTENCY_LEVEL_SESSION: Freshness.SESSION,
    passage_pb2.CONSISTENCY_LEVEL_QUORUM: Freshness.QUORUM,
}
RETRY_MS = 200


def shard_coverage(
    outcome: ShardOutcome[T], level: Level.ValueType, index_epoch: str, rows_live: int
) -> passage_pb2.ShardCoverage:
    """One shard's part. `index_epoch` and `rows_live` are those of the view that was read."""
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
    return coverage


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
