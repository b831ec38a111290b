"""What every fault is: targets from the seed, a beginning, and an end after which the mesh is whole again."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from typing import ClassVar, Self

from tests.chaos.net_mesh import NODES, ROUTERS, NetMesh

EVERYONE = (*NODES, *ROUTERS)
HOLD_S = (2.0, 8.0)
STOPPED_S = (1.0, 20.0)


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
