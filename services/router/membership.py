"""Who votes, as the topology record says: followed, read again on suspicion, and waited for while a shard is frozen.

An operation takes its membership once, as an immutable `Collection`; when replicas say that it is out of date, or the
record says that a change is under way, the attempt ends and the next one begins with the membership of then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextlib import aclosing

from observability.logs import logger
from services.router.catalogue import Catalogue, Collection
from services.runtime.config import ConfigError
from services.runtime.deadline import Deadline
from services.runtime.errors import MeshError, Unavailable
from services.runtime.record_store import RecordStore
from services.runtime.topology import Topology

# How often one operation may begin again because members changed: each time a whole change has taken place.
ATTEMPTS_MAX = 8
# While a shard is frozen the record is read this often besides being watched.
LOOK_S = 0.25
# Suspicions that come together share a read; between two reads lies at least this.
READ_PAUSE_S = 0.02
RETRY_MS = 200
_LOG = logger("membership")


class Membership:
    """The memberships of one coordinator."""

    def __init__(self, catalogue: Catalogue, store: RecordStore | None) -> None:
        """`store` None: members never change."""
        self._catalogue, self._store = catalogue, store
        self._news = asyncio.Event()
        self._reading = asyncio.Lock()
        self._read_at_s = float("-inf")

    async def follow(self) -> None:
        """Take up every change of the record until cancelled."""
        if self._store is None:
            return
        async with aclosing(self._store.watch()) as changes:
            async for topology in changes:
                self._take(topology)

    def newest(self, collection: Collection) -> Collection:
        """The membership known now: `collection` itself unless there is a newer one."""
        known = self._catalogue.get(collection.name)
        return known if known.newer_than(collection) else collection

    async def serving(self, collection: Collection, shards: Iterable[int], deadline: Deadline) -> Collection:
        """The newest membership, once none of `shards` is frozen. Raises Unavailable: nothing was sent."""
        wanted = frozenset(shards)
        current = self.newest(collection)
        while frozen := wanted & current.frozen:
            if deadline.expired():
                shard = min(frozen)
                raise Unavailable(
                    f"collection {collection.name!r}, shard {shard}: its members are being changed (epoch "
                    f"{current.members[shard].epoch} is frozen) and the change did not end in time; `ostraka replica "
                    "list` shows it, `ostraka replica resume` ends one that was left; ONE and SESSION may be had",
                    retry_ms=RETRY_MS,
                    reason="SHARD_FROZEN",
                    metadata={"shards": ",".join(map(str, sorted(frozen)))},
                    definite=True,
                )
            news = self._news
            try:
                async with asyncio.timeout(deadline.at_most_ms(LOOK_S * 1_000).remaining_s()):
                    await news.wait()
            except TimeoutError:
                await self._read(deadline)
            current = self.newest(collection)
        return current

    async def after(self, collection: Collection, deadline: Deadline) -> Collection | None:
        """A newer membership than `collection`, the record read again if need be; None when there is none."""
        if self.newest(collection) is collection:
            await self._read(deadline, unless_newer_than=collection)
        found = self.newest(collection)
        return None if found is collection else found

    async def _read(self, deadline: Deadline, unless_newer_than: Collection | None = None) -> None:
        if self._store is None or deadline.expired():
            return
        try:
            async with asyncio.timeout(deadline.remaining_s()), self._reading:
                if unless_newer_than is not None and self.newest(unless_newer_than) is not unless_newer_than:
                    return
                pause_s = self._read_at_s + READ_PAUSE_S - asyncio.get_running_loop().time()
                if pause_s > 0:
                    await asyncio.sleep(pause_s)
                self._take(await self._store.read())
                self._read_at_s = asyncio.get_running_loop().time()
        except TimeoutError:
            return
        except (ConfigError, MeshError) as error:
            _LOG.warning("the topology record cannot be read; the last one stays in force", reason=str(error))

    def _take(self, topology: Topology) -> None:
        if self._catalogue.update(topology):
            news, self._news = self._news, asyncio.Event()
            news.set()
