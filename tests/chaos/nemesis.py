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

    seconds: list[float] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


async def disturb(
    mesh: NetMesh,
    episodes: Iterable[Episode],
    situation: Situation,
    observer: Observer,
    clients: Sequence[ChaosClient],
    until_s: float,
) -> Healed:
    """Go on until the monotonic clock shows `until_s`. Writes pause while the mesh converges, searches do not.

    Raises SupervisorError when a process does not come back, OSError when the network cannot be changed.
    """
    healed, begun_s = Healed(), time.monotonic()
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
        took_s = await observer.converged(GIVEN_UP_AFTER_S)
        print(f": equal after {took_s:.1f} s" if took_s is not None else ": NOT EQUAL", flush=True)
        if took_s is None or took_s > CONVERGED_WITHIN_S:
            took = f"more than {GIVEN_UP_AFTER_S:g} s" if took_s is None else f"{took_s:.1f} s"
            healed.problems.append(
                f"replicas took {took} to become equal after {episode}, not within {CONVERGED_WITHIN_S:g} s"
            )
        healed.seconds.append(GIVEN_UP_AFTER_S if took_s is None else took_s)
        situation.healing = False
        for client in clients:
            client.writing = True
        await asyncio.sleep(episode.rest_s)
    return healed


async def _happen(mesh: NetMesh, situation: Situation, timed: Timed) -> None:
    fault, name = timed.fault, repr(timed)
    await asyncio.sleep(timed.from_s)
    situation.begin(name, fault.voters_down, only_voters=fault.only_voters)
    try:
        await fault.begin(mesh)
        await asyncio.sleep(timed.to_s - timed.from_s)
    finally:
        await fault.end(mesh)
        situation.end(name)
