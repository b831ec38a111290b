"""Watches the nodes from outside: equal applied sets must mean equal content at all times, and end equal."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial

import grpc
import numpy as np

from ostraka.client import Client
from ostraka.errors import OstrakaError
from ostraka.v1 import shard_pb2
from services.quorum.clock import Version, physical_ms
from tests.chaos.corpus import DIM
from tests.chaos.net_mesh import NODES, ROUTERS, NetMesh
from tests.simulation.history import History, LiveState

WATCH_S = 0.5
POLL_S = 0.1
READ_S = 1.0
Shards = Mapping[int, tuple[bytes, bytes]]
"""Shard to (applied set, digest)."""


class Observer:
    """Asks every node for its state again and again."""

    def __init__(self, mesh: NetMesh, history: History, skew_ms_max: int) -> None:
        self._mesh, self._history, self._skew_ms_max = mesh, history, skew_ms_max
        self._clients: list[Client] = []
        self.problems: list[str] = []

    async def run(self) -> None:
        """Watch until cancelled."""
        self._clients = [await self._mesh.client(address) for address in self._mesh.router_addresses]
        while True:
            await self.look()
            await asyncio.sleep(WATCH_S)

    async def look(self) -> dict[str, Shards]:
        """The state of every node that answers."""
        found = await asyncio.gather(*map(self._ask, NODES))
        return {node: shards for node, shards in zip(NODES, found, strict=True) if shards is not None}

    async def converged(self, timeout_s: float) -> float | None:
        """Seconds until every node answers and all have the same applied sets and digests; None: not in time."""
        return await _seconds_until(self._equal, timeout_s)

    async def served(self, timeout_s: float) -> float | None:
        """Seconds until each router reaches every node and has answered a read at QUORUM; None: not in time."""
        waits = (_seconds_until(partial(self._reads, router), timeout_s) for router in range(len(ROUTERS)))
        found = [seconds for seconds in await asyncio.gather(*waits) if seconds is not None]
        return max(found) if len(found) == len(ROUTERS) else None

    async def close(self) -> None:
        """Close the connections to the routers."""
        for client in self._clients:
            await client.close()

    async def _equal(self) -> bool:
        states = await self.look()
        return len(states) == len(NODES) and all(state == states[NODES[0]] for state in states.values())

    async def _reads(self, router: int) -> bool:
        try:
            # A quorum would do for the search; a link that is still dead would show when the next voter goes down.
            await self._clients[router].search(np.ones(DIM, dtype=np.float32), k=1, timeout_s=READ_S)
            status = await self._clients[router].status(timeout_s=READ_S)
        except OstrakaError:
            return False
        return all(node.reachable for node in status.nodes)

    async def _ask(self, node: str) -> Shards | None:
        try:
            status = await self._mesh.status(node)
        except grpc.aio.AioRpcError:
            return None
        states: dict[int, tuple[bytes, bytes]] = {}
        for replica in status.replicas:
            applied = replica.applied.SerializeToString(deterministic=True)
            states[replica.shard] = (applied, replica.digest)
            if replica.digest:  # a replica that is not open yet shows nothing
                self._judge(node, replica, applied)
        return states

    def _judge(self, node: str, replica: shard_pb2.ReplicaState, applied: bytes) -> None:
        name = f"{node}, shard {replica.shard}"
        # The digest stands for the rows: what is compared is only whether they are equal.
        live: LiveState = frozenset({(f"{replica.shard}", Version.ZERO, (replica.digest,))})
        self._history.views.setdefault(b"%d:" % replica.shard + applied, {}).setdefault(live, name)
        ahead_ms = physical_ms(replica.hlc_max) - time.time() * 1_000
        if ahead_ms > self._skew_ms_max:
            self.problems.append(f"{name} took a version {ahead_ms / 1_000:.1f} s ahead of the clock")


async def _seconds_until(condition: Callable[[], Awaitable[bool]], timeout_s: float) -> float | None:
    begun_s = time.monotonic()
    while (waited_s := time.monotonic() - begun_s) < timeout_s:
        if await condition():
            return time.monotonic() - begun_s
        await asyncio.sleep(min(POLL_S, timeout_s - waited_s))
    return None
