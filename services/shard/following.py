"""The task of a node that follows the topology record: every change is taken up, also when a first attempt failed."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

from observability.logs import logger
from services.runtime.record_store import RecordStore
from services.runtime.topology import Topology
from services.shard.node import Node

RETRY_S = 1.0
_LOG = logger("shard")


class Following:
    """One node and its record store; `run` until cancelled."""

    def __init__(self, node: Node, store: RecordStore) -> None:
        self._node, self._store = node, store
        self._latest: Topology | None = None
        self._news = asyncio.Event()

    async def run(self) -> None:
        """Both halves go on together, so that a slow change of replicas never hides a newer record."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch())
            group.create_task(self._follow())

    async def _watch(self) -> None:
        async with aclosing(self._store.watch()) as changes:
            async for topology in changes:
                self._latest = topology
                self._news.set()

    async def _follow(self) -> None:
        while True:
            await self._news.wait()
            self._news.clear()
            assert self._latest is not None, "there is news"
            try:
                done = await self._node.follow(self._latest)
            except Exception as error:
                # A defect met with one record must not keep the node from the next.
                _LOG.exception("the topology record was not followed", error)
                done = False
            if not done:
                asyncio.get_running_loop().call_later(RETRY_S, self._news.set)
