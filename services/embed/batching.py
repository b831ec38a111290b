"""Which waiting texts go into the next forward pass. Pure: values in, batches out.

Policy:

- Nothing waits for company. Whoever asks for a batch gets what is queued at that moment; batches grow only
  because the previous pass was still running (the same adaptive batching as group commit).
- Queries go before passages and never share a pass with them, so a query is padded to queries' lengths and
  waits behind at most one passage pass. After `QUERY_TURNS_MAX` query passes in a row one passage pass runs,
  so neither lane starves.
- Within a lane, requests take turns text by text; a request's own texts go longest first, so that neighbours
  in a pass have similar lengths and little padding.
- A pass is bounded by texts and by padded tokens (texts x longest), because compute grows with the latter.
- The queue is bounded in texts; what does not fit is refused whole.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

QUERY_TURNS_MAX = 8
"""Query passes in a row while passages wait: a query pass takes milliseconds, a passage pass some hundred."""

PASS_TOKENS_MAX = 2_048
"""Padded tokens in one pass. Throughput on a CPU is flat above it, and it bounds how long a query waits."""


class Lane(Enum):
    """Where a request queues."""

    QUERY = "query"
    PASSAGE = "passage"


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of the queue and of one pass; all at least 1."""

    batch_texts_max: int
    queue_texts_max: int
    pass_tokens_max: int = PASS_TOKENS_MAX

    def __post_init__(self) -> None:
        assert min(self.batch_texts_max, self.queue_texts_max, self.pass_tokens_max) >= 1


@dataclass(frozen=True, slots=True)
class Item:
    """One text of one request."""

    ticket: int
    index: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Batch:
    """One forward pass: texts of one lane, longest first."""

    lane: Lane
    items: tuple[Item, ...]


@dataclass(slots=True)
class _Waiting:
    """The texts of one request that have not been taken yet."""

    expires_s: float
    items: deque[Item]


@dataclass(slots=True)
class BatchQueue:
    """The bounded queue in front of the model. Tickets are the caller's numbers and must be unique while queued."""

    limits: Limits
    texts_waiting: int = 0
    _lanes: dict[Lane, dict[int, _Waiting]] = field(default_factory=lambda: {lane: {} for lane in Lane})
    _query_turns: int = 0

    def offer(self, ticket: int, lane: Lane, tokens: Sequence[int], expires_s: float) -> bool:
        """Queue a request whose texts have these (estimated) token counts. False: no room, nothing was queued."""
        assert tokens, "a request has at least one text"
        assert not any(ticket in waiting for waiting in self._lanes.values()), "tickets are unique"
        if self.texts_waiting + len(tokens) > self.limits.queue_texts_max:
            return False
        items = [Item(ticket, index, count) for index, count in enumerate(tokens)]
        items.sort(key=lambda item: (-item.tokens, item.index))
        self._lanes[lane][ticket] = _Waiting(expires_s, deque(items))
        self.texts_waiting += len(items)
        return True

    def withdraw(self, ticket: int) -> int:
        """Forget what is left of a request; returns how many texts were still waiting."""
        for waiting in self._lanes.values():
            gone = waiting.pop(ticket, None)
            if gone is not None:
                self.texts_waiting -= len(gone.items)
                return len(gone.items)
        return 0

    def late(self, now_s: float) -> tuple[int, ...]:
        """Withdraw the requests whose deadline has passed and name them: their answer would come too late."""
        tickets = tuple(
            ticket for waiting in self._lanes.values() for ticket, row in waiting.items() if row.expires_s <= now_s
        )
        for ticket in tickets:
            self.withdraw(ticket)
        return tickets

    def take(self) -> Batch | None:
        """The next pass, or None when nothing waits."""
        lane = self._next_lane()
        if lane is None:
            return None
        waiting = self._lanes[lane]
        items: list[Item] = []
        longest = 0
        while waiting and len(items) < self.limits.batch_texts_max:
            ticket, row = next(iter(waiting.items()))
            longest = max(longest, row.items[0].tokens)
            if items and longest * (len(items) + 1) > self.limits.pass_tokens_max:
                break
            items.append(row.items.popleft())
            # A dict keeps insertion order, so taking out and putting back moves a request to the end of the line.
            del waiting[ticket]
            if row.items:
                waiting[ticket] = row
        self.texts_waiting -= len(items)
        assert items, "a lane with requests yields a text"
        items.sort(key=lambda item: -item.tokens)
        return Batch(lane, tuple(items))

    def _next_lane(self) -> Lane | None:
        queries, passages = self._lanes[Lane.QUERY], self._lanes[Lane.PASSAGE]
        if queries and (not passages or self._query_turns < QUERY_TURNS_MAX):
            self._query_turns = self._query_turns + 1 if passages else 0
            return Lane.QUERY
        self._query_turns = 0
        return Lane.PASSAGE if passages else None
