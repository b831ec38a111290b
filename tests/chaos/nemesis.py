"""Disturbs the mesh, episode after episode, and waits for it to become whole in between."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from tests.chaos.clients import ChaosClient
from tests.chaos.net_mesh import NetMesh
from tests.chaos.observer import Observer
from tests.chaos.schedule import Episode, Timed
from tests.chaos.situation import Situation

CONVERGED_WITHIN_S = 10.0
GIVEN_UP_AFTER_S = 60.0


@dataclass(slots=True)
class Healed:
    """How long the mesh took to agree after each episode."""

    equal_s: list[float] = field(default_factory=list)
    """Until all replicas had the same applied sets and digests."""
    served_s: list[float] = field(default_factory=list)
    """Until each router reached every node and had answered a read at QUORUM."""
    problems: list[str] = field(default_factory=list)

    within_s: float = CONVERGED_WITHIN_S
    """How soon both are asked for."""

    def add(self, episode: Episode, equal_s: float | None, served_s: float | None) -> None:
        """What an episode was followed by; None: not before it was given up."""
        both = (("replicas equal", equal_s, self.equal_s), ("routers serving", served_s, self.served_s))
        for what, seconds, record in both:
            record.append(GIVEN_UP_AFTER_S if seconds is None else seconds)
            if record[-1] > self.within_s or seconds is None:
                self.problems.append(f"{what} {_shown(seconds)} after {episode}, not within {self.within_s:g} s")


async def disturb(
    mesh: NetMesh,
    episodes: Iterable[Episode],
    situation: Situation,
    observer: Observer,
    clients: Sequence[ChaosClient],
    until_s: float,
    within_s: float,
) -> Healed:
    """Go on until the monotonic clock shows `until_s`. Writes pause while the mesh converges, searches do not.

    Raises SupervisorError when a process does not come back, OSError when the network cannot be changed.
    """
    healed, begun_s = Healed(within_s=within_s), time.monotonic()
    for episode in episodes:
        if time.monotonic() >= until_s:
            break
        print(f"{time.monotonic() - begun_s:6.1f} s  {episode}", end="", flush=True)
        async with asyncio.TaskGroup() as group:
            for timed in episode.faults:
                group.create_task(_happen(mesh, situation, timed))
        situation.healing = True
        for client in clients:
            client.writing = False
        equal_s, served_s = await asyncio.gather(
            observer.converged(GIVEN_UP_AFTER_S), observer.served(GIVEN_UP_AFTER_S)
        )
        print(f": equal after {_shown(equal_s)}, served after {_shown(served_s)}", flush=True)
        healed.add(episode, equal_s, served_s)
        situation.healing = False
        for client in clients:
            client.writing = True
        await asyncio.sleep(episode.rest_s)
    return healed


def _shown(seconds: float | None) -> str:
    return f"more than {GIVEN_UP_AFTER_S:g} s" if seconds is None else f"{seconds:.1f} s"


async def _happen(mesh: NetMesh, situation: Situation, timed: Timed) -> None:
    """A fault that cannot begin or end ends the run, and the run its sandbox: nothing has to be undone then."""
    fault, name = timed.fault, repr(timed)
    await asyncio.sleep(timed.from_s)
    situation.begin(name, fault.voters_down, only_voters=fault.only_voters)
    await fault.begin(mesh)
    await asyncio.sleep(timed.to_s - timed.from_s)
    await fault.end(mesh)
    situation.end(name)
