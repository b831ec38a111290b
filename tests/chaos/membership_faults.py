"""Faults that end with other members: a voter's disk is lost, and a new replica takes its place."""

from __future__ import annotations

import asyncio
import random
import shutil
import subprocess
import sys
from dataclasses import dataclass
from typing import ClassVar, Self

from services.runtime import topology_file
from tests.chaos.fault import EVERYONE, Fault
from tests.chaos.net_mesh import COLLECTION, NODES, NetMesh

REPLACED_WITHIN_S = 60.0
SHARDS = (0, 1)


class NotReplacedError(Exception):
    """The command that replaces a voter failed."""


@dataclass(frozen=True, slots=True)
class LoseDisk(Fault):
    """SIGKILL a node and delete what one of its replicas had; start it, and replace that voter by command."""

    hold_s: ClassVar[tuple[float, float]] = (0.5, 3.0)
    node: str
    shard: int

    @classmethod
    def draw(cls, rng: random.Random) -> Self:
        return cls(rng.choice(NODES), rng.choice(SHARDS))

    def __str__(self) -> str:
        return f"{type(self).__name__} {self.node}, shard {self.shard}"

    @property
    def touches(self) -> frozenset[str]:
        """Nothing may overlap: a second voter that is down could be the only other holder of a write."""
        return frozenset(EVERYONE)

    @property
    def voters_down(self) -> frozenset[str]:
        return frozenset({self.node})

    @property
    def only_voters(self) -> bool:
        """The shard is frozen for a moment as well."""
        return False

    async def begin(self, mesh: NetMesh) -> None:
        await mesh.kill(self.node)
        shutil.rmtree(mesh.config.replica_dir(self.node, self._voter(mesh)))

    async def end(self, mesh: NetMesh) -> None:
        await mesh.bring_up(self.node)
        call = (sys.executable, "-c", "from ostraka.cli.main import main; main()")
        replace = (*call, "replica", "replace", self._voter(mesh))
        options = ("--node", self.node, "--dead", "--timeout", f"{REPLACED_WITHIN_S:g}")
        done = await asyncio.to_thread(
            subprocess.run,
            (*replace, *options, "--mesh-file", str(mesh.config.path)),
            capture_output=True,
            text=True,
            timeout=2 * REPLACED_WITHIN_S,
        )
        if done.returncode:
            raise NotReplacedError(f"{self}: exit {done.returncode}: {done.stdout}{done.stderr}")

    def _voter(self, mesh: NetMesh) -> str:
        members = topology_file.load(mesh.config).collections[COLLECTION].shards[self.shard]
        return next(voter.replica_id for voter in members.voters if voter.node == self.node)
