"""How a call's one deadline is spent, with a reason beside each share."""

from __future__ import annotations

from services.runtime.deadline import Deadline

# Kept back so that an honest answer (UNCERTAIN with its version, or which shard is missing) still reaches the
# caller: two network hops and a full event loop.
REPLY_MS = 100
REPLY_SHARE = 0.1
# A query's embedding takes milliseconds, unless the service is overloaded; then failing early leaves the
# caller time to try again.
EMBED_SHARE = 0.4
# Passages of a large document are what an Upsert spends most of its time on.
EMBED_PASSAGES_SHARE = 0.8
# Retrieval gets half of what embedding left, because generation is by far the slowest part of an answer.
ASK_RETRIEVAL_SHARE = 0.5

# Finding what a Delete by source or filter means is a read like any other; the tombstones need the time.
DELETE_LISTING_SHARE = 0.5
# Asking whether a keyed write was made before, and completing what was found, must leave time to write.
KEYS_SHARE = 0.4


def work(deadline: Deadline) -> Deadline:
    """The part of a call's deadline that its work may use."""
    return deadline.minus_ms(min(REPLY_MS, deadline.remaining_ms() * REPLY_SHARE))
