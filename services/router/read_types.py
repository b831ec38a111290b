"""What a read asks replicas for, what they answer, and what it needs to do so."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Generic, Protocol, TypeVar

from services.quorum.gtid import GtidSet
from services.quorum.replica import Summary
from services.quorum.summary import SummaryRound
from services.router.membership import Membership
from services.router.node_choice import HedgeBudget, HedgePace, NodeBook
from services.router.summary_rounds import SummaryRounds
from services.runtime.clock import Clock
from services.runtime.config import RouterConfig

T = TypeVar("T")


class Freshness(Enum):
    """What a read promises."""

    ONE = "one"
    SESSION = "session"
    BOUNDED = "bounded"
    QUORUM = "quorum"
    LINEARIZABLE = "linearizable"
    """As QUORUM, and then written back by `services.router.write_back`."""


@dataclass(frozen=True, slots=True)
class LegReply(Generic[T]):
    """One shard's part of a node's answer: a value with the view it was read from, or why not."""

    value: T | None
    view: Summary
    """The replica, its status, and the applied set of the view that was read."""
    problem: str = ""


@dataclass(frozen=True, slots=True)
class LegRequest:
    """What a leg asks one node for."""

    node: str
    require: Mapping[int, GtidSet]
    """Per shard what the view must contain."""
    holders: Sequence[str]
    role: str
    traceparents: Mapping[int, str]
    timeout_s: float
    max_staleness_ms: int = 0
    """How old the replica's last exchange with enough voters may be; 0: any age."""
    refresh: bool = False
    """Whether a replica that is older shall exchange with its peers first."""


class LegSender(Protocol[T]):
    """Sends one leg. The future ends with the shards' replies or a MeshError; cancelling it abandons the call."""

    def __call__(self, request: LegRequest, /) -> asyncio.Future[Mapping[int, LegReply[T]]]: ...


@dataclass(frozen=True, slots=True)
class ReadTools:
    """What every read of this coordinator shares."""

    rounds: SummaryRounds
    book: NodeBook
    budget: HedgeBudget
    pace: HedgePace
    limits: RouterConfig
    clock: Clock
    membership: Membership


@dataclass(frozen=True, slots=True)
class Reply(Generic[T]):
    """The answer that a shard is read from."""

    node: str
    replica: str
    view: GtidSet
    value: T


@dataclass(frozen=True, slots=True)
class ShardOutcome(Generic[T]):
    """How one shard took part in a read."""

    shard: int
    reply: Reply[T] | None
    voters_answered: int
    hedges: int
    retries: int
    reason: str
    """Why there is no reply."""
    round: SummaryRound | None = None
    """What the voters said at QUORUM."""
    moved: bool = False
    """A replica said, or showed, that the members are others than this read was made for."""
