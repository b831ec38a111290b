"""Where the topology record is kept, and how a running mesh follows it.

Never on the data path: routers and nodes work from the record they last read, and a store that is gone stops changes
of members alone. Every process reads through one of these; only a controller swaps.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Protocol

from services.runtime.topology import ShardTopology, Topology


class RecordStore(Protocol):
    """The record of every shard of the collections that the mesh file declares."""

    async def read(self) -> Topology:
        """The record now. Raises ConfigError, which says what to do about it, when it is missing, cannot be read or
        contradicts itself or the mesh file; Unavailable when the store does not answer."""

    async def swap(self, collection: str, shard: int, expected_epoch: int, record: ShardTopology) -> ShardTopology:
        """Replace one shard's record if its epoch is still `expected_epoch`; durable when it returns.

        Returns what is stored afterwards: `record`, or what another controller wrote meanwhile. Raises ConfigError,
        nothing changed, for a record that no node may follow (`topology.shard_problem`) or that may not follow what
        is stored (`topology.successor_problem`); Unavailable when the store does not answer: it may be written then.
        """

    def watch(self) -> AsyncGenerator[Topology, None]:
        """The record now, then again soon after it changed, at least once a second looked for; until closed.

        Several changes may be seen as one. What cannot be read is logged, and looked for again: a running process
        goes on with the record that it has. Raises nothing.
        """

    async def close(self) -> None:
        """Let go of the store."""
