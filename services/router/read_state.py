"""What one read knows while it runs: each shard's search and answers, each call under way."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from services.quorum.search import Leg, QuorumSearch
from services.router.leg_span import LegSpan
from services.router.read_types import LegReply, Reply

T = TypeVar("T")


@dataclass(slots=True)
class ShardState(Generic[T]):
    """One shard of the read."""

    number: int
    search: QuorumSearch
    answers: list[tuple[Reply[T], LegSpan]] = field(default_factory=list)
    accepted: Reply[T] | None = None
    hedges: int = 0
    retries: int = 0
    voters_answered: int = 0
    reason: str = ""
    given_up: bool = False
    short_of_legs: bool = False
    """A leg failed and was not replaced yet."""
    refresh: bool = False
    """Replicas refused as too stale: the next ones asked shall refresh."""
    moved: bool = False
    """A replica said, or showed, that the members have changed."""
    resting: bool = False
    """Waits for a pause to end."""

    def retire(self) -> None:
        """Keep the counts of a search that is about to be replaced."""
        self.hedges += self.search.hedges
        self.retries += self.search.retries


@dataclass(slots=True)
class Call(Generic[T]):
    """One leg's call: the shards it asks one node for."""

    node: str
    sent_s: float
    legs: dict[int, tuple[Leg, QuorumSearch, LegSpan]]
    open: set[int]
    """Shards it has not answered."""
    future: asyncio.Future[Mapping[int, LegReply[T]]] | None = None
    timer: asyncio.TimerHandle | None = None
