"""Faults of links that pass through a proxy: slow, lossy, half-open."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Self

from tests.chaos.fault import Fault
from tests.chaos.link_proxy import LinkProxy, Weather
from tests.chaos.net_mesh import NetMesh

DELAYS_S = (0.05, 0.5)
STALL_SHARES = (0.02, 0.2)


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
