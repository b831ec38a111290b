"""What can be done to a mesh of real processes. One small class each; the schedule draws from ACTIONS.

A further fault is a class here and a line in ACTIONS: `draw` takes its targets from the seed, `begin` does it, `end`
undoes it and returns when the mesh is whole again.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
from abc import ABC, abstractmethod
from dataclasses import dataclass
from itertools import product
from typing import ClassVar, Self

from tests.chaos.link_proxy import LinkProxy, Weather
from tests.chaos.net_mesh import DISK_NODE, NODES, RESERVE_BYTES, ROUTERS, NetMesh, faketime_library, free_bytes

EVERYONE = (*NODES, *ROUTERS)
DELAYS_S = (0.05, 0.5)
STALL_SHARES = (0.02, 0.2)
CLOCK_OFFSETS = ("+2s", "-2s", "+3600s")
HOLD_S = (2.0, 8.0)
_BALLAST = "ballast"


class Fault(ABC):
    """One fault with its targets."""

    hold_s: ClassVar[tuple[float, float]] = HOLD_S
    """How long it lasts."""

    @classmethod
    @abstractmethod
    def draw(cls, rng: random.Random) -> Self:
        """One with targets of its own."""

    def __str__(self) -> str:
        return f"{type(self).__name__} {' '.join(sorted(self.touches))}"

    @property
    def touches(self) -> frozenset[str]:
        """Processes; faults that touch the same one do not overlap."""
        return self.voters_down

    @property
    def voters_down(self) -> frozenset[str]:
        """Nodes that cannot take part in a write quorum while it lasts."""
        return frozenset()

    @property
    def only_voters(self) -> bool:
        """Apart from these voters the mesh is whole, so callers should notice nothing."""
        return bool(self.voters_down)

    @abstractmethod
    async def begin(self, mesh: NetMesh) -> None:
        """Do it."""

    @abstractmethod
    async def end(self, mesh: NetMesh) -> None:
        """Undo it, and wait until processes say SERVING."""


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

    hold_s: ClassVar[tuple[float, float]] = (1.0, 20.0)
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

    hold_s: ClassVar[tuple[float, float]] = (1.0, 20.0)
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


@dataclass(frozen=True, slots=True)
class Partition(Fault):
    """Packets of these ways are dropped: (source, target) pairs."""

    ways: frozenset[tuple[str, str]]
    what: str

    def __str__(self) -> str:
        return f"{type(self).__name__} {self.what}"

    @property
    def touches(self) -> frozenset[str]:
        return frozenset(name for way in self.ways for name in way)

    async def begin(self, mesh: NetMesh) -> None:
        for source, target in sorted(self.ways):
            await asyncio.to_thread(mesh.network.drop, source, target)

    async def end(self, mesh: NetMesh) -> None:
        for source, target in sorted(self.ways):
            await asyncio.to_thread(mesh.network.pass_again, source, target)


@dataclass(frozen=True, slots=True)
class Isolate(Partition):
    """A node is cut off from everyone, both ways, or it hears nobody, or nobody hears it."""

    node: str

    @classmethod
    def draw(cls, rng: random.Random) -> Self:
        node = rng.choice(NODES)
        deaf = {(name, node) for name in EVERYONE if name != node}
        mute = {(node, name) for name in EVERYONE if name != node}
        how, ways = rng.choice((("wholly", deaf | mute), ("wholly", deaf | mute), ("deaf", deaf), ("mute", mute)))
        return cls(frozenset(ways), f"{node} {how}", node)

    @property
    def voters_down(self) -> frozenset[str]:
        return frozenset({self.node})


@dataclass(frozen=True, slots=True)
class Split(Partition):
    """One node and one router on one side, everyone else on the other."""

    @classmethod
    def draw(cls, rng: random.Random) -> Self:
        few = (rng.choice(NODES), rng.choice(ROUTERS))
        ways = {(one, other) for one, other in product(EVERYONE, repeat=2) if (one in few) != (other in few)}
        return cls(frozenset(ways), " ".join(few))


@dataclass(frozen=True, slots=True)
class PartLink(Partition):
    """Two processes cannot reach each other, or one of them not the other; everyone else can."""

    @classmethod
    def draw(cls, rng: random.Random) -> Self:
        node = rng.choice(NODES)
        other = rng.choice([name for name in EVERYONE if name != node])
        there, back = (other, node), (node, other)
        arrow, ways = rng.choice((("<->", {there, back}), ("->", {there}), ("<-", {back})))
        return cls(frozenset(ways), f"{other} {arrow} {node}")


@dataclass(frozen=True, slots=True)
class BadLinks(Fault):
    """Proxied links change their weather: a share of them, drawn by link and seed."""

    share: float
    weather: Weather
    seed: int

    def __str__(self) -> str:
        least, most = self.weather.delay_s
        return f"{type(self).__name__} {self.share:.0%} of links, {least * 1000:.0f}-{most * 1000:.0f} ms, " + (
            f"{self.weather.stall_share:.0%} stalled"
        )

    @property
    def touches(self) -> frozenset[str]:
        return frozenset({"links"})

    async def begin(self, mesh: NetMesh) -> None:
        for proxy in self.chosen(mesh):
            proxy.weather = self.weather

    async def end(self, mesh: NetMesh) -> None:
        for proxy in self.chosen(mesh):
            proxy.clear()

    def chosen(self, mesh: NetMesh) -> list[LinkProxy]:
        """The same links each time; at least one."""
        rng = random.Random(self.seed)
        proxies = list(mesh.proxies.values())
        return [proxy for proxy in proxies if rng.random() < self.share] or [rng.choice(proxies)]


@dataclass(frozen=True, slots=True)
class SlowLinks(BadLinks):
    """Every chunk takes 50 to 500 ms."""

    @classmethod
    def draw(cls, rng: random.Random) -> Self:
        least_s, most_s = sorted(rng.uniform(*DELAYS_S) for _ in range(2))
        return cls(rng.choice((0.2, 0.5, 1.0)), Weather((least_s, most_s)), rng.getrandbits(32))


@dataclass(frozen=True, slots=True)
class LossyLinks(BadLinks):
    """What a lossy link does to a TCP stream: some of it comes a retransmission timeout late, and all behind it too."""

    @classmethod
    def draw(cls, rng: random.Random) -> Self:
        weather = Weather(stall_share=rng.uniform(*STALL_SHARES))
        return cls(rng.choice((0.2, 0.5, 1.0)), weather, rng.getrandbits(32))


@dataclass(frozen=True, slots=True)
class HalfOpenLinks(BadLinks):
    """Connections die and nobody is told; what is opened meanwhile is accepted and never answered."""

    @classmethod
    def draw(cls, rng: random.Random) -> Self:
        return cls(rng.choice((0.2, 0.5, 1.0)), Weather(swallowed=True), rng.getrandbits(32))

    def __str__(self) -> str:
        return f"{type(self).__name__} {self.share:.0%} of links"

    async def begin(self, mesh: NetMesh) -> None:
        for proxy in self.chosen(mesh):
            proxy.cut()


@dataclass(frozen=True, slots=True)
class DiskFull(Fault):
    """A file takes the space of one node's small disk, down to `left_bytes`."""

    left_bytes: int

    @classmethod
    def draw(cls, rng: random.Random) -> Self:
        # Below the reserve the node refuses by itself; with nothing left the file system does.
        return cls(rng.choice((0, RESERVE_BYTES // 2)))

    def __str__(self) -> str:
        return f"{type(self).__name__} {DISK_NODE}, {self.left_bytes >> 10} KiB left"

    @property
    def voters_down(self) -> frozenset[str]:
        return frozenset({DISK_NODE})

    async def begin(self, mesh: NetMesh) -> None:
        size = free_bytes(mesh.disk_dir) - self.left_bytes
        with (mesh.disk_dir / _BALLAST).open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, size)

    async def end(self, mesh: NetMesh) -> None:
        (mesh.disk_dir / _BALLAST).unlink()


@dataclass(frozen=True, slots=True)
class SkewRouter(Fault):
    """A router is killed and comes back with a wall clock that is wrong, then with the right one."""

    router: str
    offset: str

    @classmethod
    def draw(cls, rng: random.Random) -> Self:
        return cls(rng.choice(ROUTERS), rng.choice(CLOCK_OFFSETS))

    def __str__(self) -> str:
        return f"{type(self).__name__} {self.router} {self.offset}"

    @property
    def touches(self) -> frozenset[str]:
        return frozenset({self.router})

    async def begin(self, mesh: NetMesh) -> None:
        await self._restart(mesh, self.offset)

    async def end(self, mesh: NetMesh) -> None:
        await self._restart(mesh, "")

    async def _restart(self, mesh: NetMesh, offset: str) -> None:
        mesh.set_clock(self.router, offset)
        await mesh.kill(self.router)
        await mesh.bring_up(self.router)


ACTIONS: tuple[type[Fault], ...] = (
    KillNode,
    StopNode,
    KillRouter,
    StopRouter,
    RestartAll,
    Isolate,
    Split,
    PartLink,
    SlowLinks,
    LossyLinks,
    HalfOpenLinks,
    DiskFull,
    SkewRouter,
)
"""Each is drawn once before any is drawn again."""


def possible() -> tuple[type[Fault], ...]:
    """Those that can be done on this machine."""
    return (
        ACTIONS if faketime_library() is not None else tuple(action for action in ACTIONS if action is not SkewRouter)
    )
