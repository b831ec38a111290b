"""A replica as its node hosts it: the engine, its state in words, and waiting for what is on its way."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from enum import StrEnum

from services.quorum.gtid import GtidSet
from services.quorum.members import Members
from services.runtime.config import ShardConfig
from services.runtime.deadline import Deadline
from services.shard.canary import Canary
from services.shard.drift import Drift
from services.shard.engine import Engine
from services.shard.upkeep import Upkeep
from services.shard.view import View


class ReplicaPhase(StrEnum):
    """What a replica can do."""

    LOADING = "LOADING"
    CATCHING_UP = "CATCHING_UP"
    SERVING = "SERVING"
    READ_ONLY = "READ_ONLY"
    FAILED = "FAILED"


@dataclass(slots=True)
class _Waiter:
    require: GtidSet
    future: asyncio.Future[None]


@dataclass(slots=True)
class HostedReplica:
    """One replica of a shard on this node. Lives in one event loop; only `published` is called from elsewhere."""

    collection: str
    shard: int
    replica_id: str
    node: str
    dim: int
    members: Members
    config: ShardConfig
    others: frozenset[str] = frozenset()
    """Nodes of the other members, learners and those to come included."""
    frozen_at_open: bool = False
    engine: Engine | None = None
    upkeep: Upkeep | None = None
    canary: Canary | None = None
    drift: Drift | None = None
    failure: str = ""
    caught_up: bool = False
    divergences: int = 0
    """How often a peer with an equal applied set had another digest: corruption, or a defect."""
    last_divergence: str = ""
    searches: int = 0
    """Queries answered since the node started."""
    _waiters: list[_Waiter] = field(default_factory=list)
    _loop: asyncio.AbstractEventLoop | None = None

    def opened(self, engine: Engine, loop: asyncio.AbstractEventLoop) -> None:
        """The engine is loaded; background work begins."""
        self.engine = engine
        self._loop = loop
        self.upkeep = Upkeep(engine)
        self.upkeep.start()

    def published(self) -> None:
        """A view was published; called in the writer thread."""
        if self.upkeep is not None:
            self.upkeep.wake()
        if self._waiters and self._loop is not None:
            self._loop.call_soon_threadsafe(self._notify)

    @property
    def reason(self) -> str:
        """Why the replica does not serve; empty when it does."""
        return self.failure or (self.engine.failure if self.engine else "")

    @property
    def votes(self) -> bool:
        """Whether it is one of the voters."""
        return self.members.voter(self.replica_id) is not None

    @property
    def peers_needed(self) -> int:
        """With how many other voters it must have exchanged to have every write acknowledged before: any N-W+1 voters
        have one that holds it."""
        return len(self.members.voters) - self.members.write_quorum + (not self.votes)

    @property
    def phase(self) -> ReplicaPhase:
        if self.reason:
            return ReplicaPhase.FAILED
        if self.engine is None:
            return ReplicaPhase.LOADING
        if self.engine.read_only:
            return ReplicaPhase.READ_ONLY
        return ReplicaPhase.SERVING if self.caught_up and not self.engine.damaged else ReplicaPhase.CATCHING_UP

    def message(self) -> str:
        """What an operator should know about the state."""
        if self.reason or self.engine is None:
            return self.reason
        parts = []
        if self.engine.read_only:
            parts.append(f"read-only: {self.engine.read_only}")
        if self.engine.damaged:
            names = ", ".join(sorted(map(str, self.engine.damaged))[:4])
            parts.append(f"{len(self.engine.damaged)} damaged rows: {names}")
        if self.divergences:
            parts.append(f"{self.divergences} digest mismatches at equal applied sets, last {self.last_divergence}")
        return "; ".join(parts)

    async def covering_view(self, require: GtidSet, deadline: Deadline) -> View | None:
        """The newest view once it contains `require`; None when that did not happen in time."""
        assert self.engine is not None, "only an open replica is searched"
        if self.engine.view.applied.issuperset(require):
            return self.engine.view
        waiter = _Waiter(require, asyncio.get_running_loop().create_future())
        self._waiters.append(waiter)
        try:
            self._notify()  # what was published between the look above and the registration
            await asyncio.wait_for(waiter.future, deadline.remaining_s())
        except TimeoutError:
            return None
        finally:
            self._waiters.remove(waiter)
        return self.engine.view

    def close(self) -> None:
        """Stop background work, finish queued writes, close the files. Blocks."""
        if self.upkeep is not None:
            self.upkeep.stop()
        if self.engine is not None:
            self.engine.close()

    def _notify(self) -> None:
        assert self.engine is not None, "views are published by an engine"
        applied = self.engine.view.applied
        for waiter in self._waiters:
            if not waiter.future.done() and applied.issuperset(waiter.require):
                waiter.future.set_result(None)
