"""`topology.json` as a record store: swapped under a file lock by atomic rename, watched by looking at the file."""

from __future__ import annotations

import asyncio
import fcntl
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from observability.logs import logger
from services.runtime import topology_file
from services.runtime.config import Config, ConfigError
from services.runtime.errors import Unavailable
from services.runtime.topology import ShardTopology, Topology

WATCH_S: Final = 0.1
"""Between two looks at the file. Half of this is added, on average, to every pause for a change of members."""
LOCK_PAUSE_S: Final = 0.02
LOCK_TRIES: Final = 250
"""A restore may hold the lock for long; a controller had better say so than wait without a word."""
_LOG = logger("runtime")


class FileRecordStore:
    """The record of a mesh on one machine."""

    def __init__(self, config: Config, *, watch_s: float = WATCH_S) -> None:
        self._config = config
        self._watch_s = watch_s

    async def read(self) -> Topology:
        return await asyncio.to_thread(topology_file.load, self._config)

    async def swap(self, collection: str, shard: int, expected_epoch: int, record: ShardTopology) -> ShardTopology:
        async with self._locked():
            return await asyncio.to_thread(
                topology_file.swap_shard, self._config, collection, shard, expected_epoch, record
            )

    async def watch(self) -> AsyncGenerator[Topology, None]:
        known: Topology | None = None
        looked_at: tuple[int, ...] | None = None
        while True:
            # Looked at before it is read: a change in between is seen at the next look.
            seen = await asyncio.to_thread(self._look)
            if seen != looked_at:
                looked_at = seen
                try:
                    found = await self.read()
                except ConfigError as error:
                    _LOG.error("the topology record cannot be followed; the last one stays in force", reason=str(error))
                else:
                    if found != known:
                        known = found
                        yield found
            await asyncio.sleep(self._watch_s)

    async def close(self) -> None:
        return

    def _look(self) -> tuple[int, ...]:
        try:
            found = self._config.topology_path.stat()
        except OSError as error:
            return (error.errno or 0,)
        return (found.st_ino, found.st_mtime_ns, found.st_size)

    @asynccontextmanager
    async def _locked(self) -> AsyncIterator[None]:
        """The lock that `ostraka up` and a restore take as well. Raises Unavailable when they keep it."""
        path = topology_file.lock_path(self._config)
        try:
            file = path.open("a")
        except OSError as error:
            raise Unavailable(f"{path} cannot be opened: {error.strerror}") from error
        with file:
            for _ in range(LOCK_TRIES):
                if _taken(file.fileno()):
                    break
                await asyncio.sleep(LOCK_PAUSE_S)
            else:
                raise Unavailable(
                    f"{path} is held by another process, a restore or another `ostraka`; try again when it has ended"
                )
            yield


def _taken(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
