"""When the coordinator may be called: every shard of every collection has a read quorum, and the model is known.

Once earned, readiness is kept: a shard that loses its quorum later is reported by the calls it concerns, while
the others go on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from opentelemetry.trace import INVALID_SPAN

from observability.logs import logger
from services.router.catalogue import Catalogue
from services.router.clock_round import quorum_clocks
from services.router.embedder import Embedder, check_served
from services.router.membership import Membership
from services.router.summary_rounds import SummaryRounds
from services.runtime.clock import Clock
from services.runtime.deadline import Deadline
from services.runtime.errors import FailedPrecondition, MeshError, Unavailable

ROUND_MS = 1_000
PAUSE_S = 0.2
# After this long, what is missing is said once; and again whenever it changes.
PATIENCE_S = 15.0
_LOG = logger("readiness")


async def wait_until_ready(
    catalogue: Catalogue, rounds: SummaryRounds, membership: Membership, embedder: Embedder, clock: Clock
) -> None:
    """Return when every shard has a read quorum. The embed service is asked too, but not waited for: vectors can
    be brought along."""
    begun_s = clock.monotonic_s()
    told: Sequence[str] = ()
    while True:
        await _learn_model(embedder, catalogue)
        missing = await _missing(catalogue, rounds, membership)
        if not missing:
            return
        if missing != told and clock.monotonic_s() - begun_s >= PATIENCE_S:
            _LOG.warning("not ready", missing=list(missing))
            told = missing
        await asyncio.sleep(PAUSE_S)


async def _missing(catalogue: Catalogue, rounds: SummaryRounds, membership: Membership) -> Sequence[str]:
    """Shards without a read quorum, as "collection/shard"."""
    missing: list[str] = []
    for collection in catalogue:
        deadline = Deadline.after_ms(ROUND_MS)
        try:
            heard, _ = await quorum_clocks(rounds, membership, collection, collection.shards, deadline, INVALID_SPAN)
        except Unavailable:  # a frozen shard serves again when its change ends; nothing else is known of the others
            heard = {}
        missing.extend(f"{collection.name}/{shard}" for shard in collection.shards if shard not in heard)
    return missing


async def _learn_model(embedder: Embedder, catalogue: Catalogue) -> None:
    if embedder.served is not None:
        return
    try:
        served = await embedder.describe()
    except MeshError as error:
        _LOG.debug("the embed service does not answer yet", reason=error.message)
        return
    for collection in catalogue:
        try:
            check_served(served, collection)
        except FailedPrecondition as error:
            _LOG.warning("texts cannot be embedded", collection=collection.name, reason=error.message)
