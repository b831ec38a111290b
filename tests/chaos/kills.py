"""SIGKILL and SIGSTOP of random shard nodes under traffic: nothing may fail, nothing acknowledged may be lost, all
converge."""

from __future__ import annotations

import random
import signal
from dataclasses import dataclass, field
from functools import partial

from ostraka.cli.supervisor import Supervisor
from ostraka.client import Client
from ostraka.mesh_status import MeshStatus
from tests.chaos.traffic import Traffic
from tests.mesh import eventually

INFLIGHT_MIN = 50
"""Calls under way at the moment of each fault."""
CALLS_BETWEEN = 300
"""Calls that end while the node is down, before it is started or let go on again."""
CONVERGED_WITHIN_S = 30.0


@dataclass(slots=True)
class Kills:
    """What happened."""

    nodes: list[str] = field(default_factory=list)
    """Node and fault, in order."""
    inflight: list[int] = field(default_factory=list)
    calls: int = 0


async def kill_and_heal(
    supervisor: Supervisor, client: Client, traffic: Traffic, *, kills: int, pauses: int, seed: int
) -> Kills:
    """Kill or stop a random node, let traffic go on without it, bring it back, wait until all replicas agree; so many
    times each, in random order.

    Raises TimeoutError when traffic stops, SupervisorError when a node does not come back, AssertionError when
    replicas do not converge.
    """
    rng = random.Random(f"{seed}/kills")
    nodes = sorted(supervisor.config.nodes)
    faults = [_killed] * kills + [_paused] * pauses
    if pauses:
        rng.shuffle(faults)
    record = Kills()
    for fault in faults:
        node = rng.choice(nodes)
        begin = traffic.finished + rng.randrange(CALLS_BETWEEN)
        await traffic.until(partial(_busy, finished=begin))
        record.inflight.append(traffic.inflight)
        record.nodes.append(f"{node} {fault.__name__.strip('_')}")
        await fault(supervisor, traffic, node)
        traffic.situation = f"{node} back"
        traffic.pause()
        await traffic.until(_idle)
        await converged(client)
        traffic.resume()
    traffic.pause()
    await traffic.until(_idle)
    record.calls = traffic.finished
    return record


async def _killed(supervisor: Supervisor, traffic: Traffic, node: str) -> None:
    traffic.situation = f"{node} down"
    supervisor.kill(node)
    await traffic.until(partial(_busy, finished=traffic.finished + CALLS_BETWEEN))
    traffic.situation = f"{node} starting"
    supervisor.start(node)
    await supervisor.wait_serving([node])


async def _paused(supervisor: Supervisor, traffic: Traffic, node: str) -> None:
    """Its connections stay open and its kernel goes on acknowledging what is sent to it."""
    traffic.situation = f"{node} stopped"
    supervisor.signal(node, signal.SIGSTOP)
    try:
        await traffic.until(partial(_busy, finished=traffic.finished + CALLS_BETWEEN))
    finally:
        supervisor.signal(node, signal.SIGCONT)


def _busy(traffic: Traffic, *, finished: int) -> bool:
    return traffic.finished >= finished and traffic.inflight >= INFLIGHT_MIN


def _idle(traffic: Traffic) -> bool:
    return traffic.inflight == 0


async def converged(client: Client) -> MeshStatus:
    """Wait until all replicas of each shard hold the same batches and the same rows. Raises AssertionError."""

    async def status() -> MeshStatus | None:
        found = await client.status()
        return found if agrees(found, client.collection) else None

    found = await eventually(status, CONVERGED_WITHIN_S, f"convergence of {client.collection}")
    assert found is not None
    return found


def agrees(status: MeshStatus, collection: str) -> bool:
    """Equal applied sets and, as the independent witness, equal digests of the live rows, on every voter."""
    if not status.converged(collection):
        return False
    shards = next(view.shards for view in status.collections if view.collection == collection)
    return all(len({replica.digest for replica in status.replicas(collection, shard)}) == 1 for shard in range(shards))
