"""Faults of processes: killed, stopped, all killed at once."""

from __future__ import annotations

import random
import signal
from dataclasses import dataclass
from typing import ClassVar, Self

from tests.chaos.fault import EVERYONE, STOPPED_S, Fault
from tests.chaos.net_mesh import NODES, ROUTERS, NetMesh


@dataclass(frozen=True, slots=True)
class KillNode(Fault):
    """SIGKILL a node; start it again."""

    node: str

    @classmethod
    def draw(cls, rng: random.Random) -> Self:
        return cls(rng.choice(NODES))

    @property
    def voters_down(self) -> frozenset[str]:
        return frozenset({self.node})

    async def begin(self, mesh: NetMesh) -> None:
        await mesh.kill(self.node)

    async def end(self, mesh: NetMesh) -> None:
        await mesh.bring_up(self.node)


@dataclass(frozen=True, slots=True)
class StopNode(Fault):
    """SIGSTOP a node: its connections stay open, its kernel goes on acknowledging."""

    hold_s: ClassVar[tuple[float, float]] = STOPPED_S
    node: str

    @classmethod
    def draw(cls, rng: random.Random) -> Self:
        return cls(rng.choice(NODES))

    @property
    def voters_down(self) -> frozenset[str]:
        return frozenset({self.node})

    async def begin(self, mesh: NetMesh) -> None:
        mesh.supervisor.signal(self.node, signal.SIGSTOP)

    async def end(self, mesh: NetMesh) -> None:
        mesh.supervisor.signal(self.node, signal.SIGCONT)


@dataclass(frozen=True, slots=True)
class KillRouter(Fault):
    """SIGKILL a router; start it again."""

    router: str

    @classmethod
    def draw(cls, rng: random.Random) -> Self:
        return cls(rng.choice(ROUTERS))

    @property
    def touches(self) -> frozenset[str]:
        return frozenset({self.router})

    async def begin(self, mesh: NetMesh) -> None:
        await mesh.kill(self.router)

    async def end(self, mesh: NetMesh) -> None:
        await mesh.bring_up(self.router)


@dataclass(frozen=True, slots=True)
class StopRouter(Fault):
    """SIGSTOP a router in the middle of what it does."""

    hold_s: ClassVar[tuple[float, float]] = STOPPED_S
    router: str

    @classmethod
    def draw(cls, rng: random.Random) -> Self:
        return cls(rng.choice(ROUTERS))

    @property
    def touches(self) -> frozenset[str]:
        return frozenset({self.router})

    async def begin(self, mesh: NetMesh) -> None:
        mesh.supervisor.signal(self.router, signal.SIGSTOP)

    async def end(self, mesh: NetMesh) -> None:
        mesh.supervisor.signal(self.router, signal.SIGCONT)


@dataclass(frozen=True, slots=True)
class RestartAll(Fault):
    """SIGKILL every process at once and start them all."""

    hold_s: ClassVar[tuple[float, float]] = (0.0, 1.0)

    @classmethod
    def draw(cls, rng: random.Random) -> Self:
        return cls()

    @property
    def touches(self) -> frozenset[str]:
        return frozenset(EVERYONE)

    async def begin(self, mesh: NetMesh) -> None:
        await mesh.kill(*EVERYONE)

    async def end(self, mesh: NetMesh) -> None:
        await mesh.bring_up(*EVERYONE)
