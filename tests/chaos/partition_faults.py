"""Faults of the network: packets dropped between namespaces, one way or both."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from itertools import product
from typing import Self

from tests.chaos.fault import EVERYONE, Fault
from tests.chaos.net_mesh import NODES, ROUTERS, NetMesh


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
