"""Faults of a machine: its disk is full, its clock is wrong."""

from __future__ import annotations

import contextlib
import random
from dataclasses import dataclass
from typing import Self

from tests.chaos.fault import Fault
from tests.chaos.net_mesh import DISK_NODE, RESERVE_BYTES, ROUTERS, NetMesh, free_bytes

CLOCK_OFFSETS = ("+2s", "-2s", "+3600s")
_BALLAST = "ballast"
_PIECE = 1024 * 1024


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
        # The node writes meanwhile, so what was free a moment ago may not be.
        with (mesh.disk_dir / _BALLAST).open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while (room := free_bytes(mesh.disk_dir) - self.left_bytes) > 0:
                file.write(bytes(min(room, _PIECE)))

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
