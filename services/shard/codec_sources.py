"""Rows of a whole collection, wherever its shards are: local replicas directly, others by SampleVectors.

Any replica of a shard will do: a sample needs no quorum. A shard that no replica answers for makes the sample fail,
because a codec trained without it would not fit its rows.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import grpc
import numpy as np
from numpy.typing import NDArray

from ostraka.v1 import shard_pb2, shard_pb2_grpc
from services.runtime.errors import MeshError
from services.shard.codec_policy import shares
from services.shard.codec_service import sample_chunks
from services.shard.hosted import HostedReplica

CALL_S = 60.0
PIECE_S = 5.0
"""A node that sends nothing for so long is given up: it may be paused."""
Stub: TypeAlias = "shard_pb2_grpc.ShardServiceAsyncStub"  # the generated module has it for type checkers only


class SampleError(Exception):
    """No replica of a shard answered; the message names the shard and the last reason."""


@dataclass(frozen=True, slots=True)
class ShardSource:
    """Where the rows of one shard can be had."""

    shard: int
    local: HostedReplica | None
    peers: Mapping[str, Stub]


@dataclass(frozen=True, slots=True)
class CollectionSource:
    """All shards of one collection."""

    collection: str
    dim: int
    shards: Sequence[ShardSource]

    async def rows_live(self) -> dict[int, int]:
        """Live rows by shard. Raises SampleError."""
        counts = await asyncio.gather(*(self._from_shard(source, 0) for source in self.shards))
        return {source.shard: count for source, (count, _) in zip(self.shards, counts, strict=True)}

    async def sample(self, live: Mapping[int, int], rows: int) -> NDArray[np.float16]:
        """About `rows` vectors float16 (n, dim), each shard with its share, one shard after the other.

        Raises SampleError.
        """
        found: list[NDArray[np.float16]] = []
        wanted = shares(live, rows)
        for source in self.shards:
            if wanted[source.shard]:
                _, vectors = await self._from_shard(source, wanted[source.shard])
                found += vectors
        return np.concatenate([np.empty((0, self.dim), dtype=np.float16), *found])

    async def _from_shard(self, source: ShardSource, rows: int) -> tuple[int, list[NDArray[np.float16]]]:
        """(live rows, vectors in pieces) from the first replica that answers. Raises SampleError."""
        request = shard_pb2.SampleVectorsRequest(collection=self.collection, shard=source.shard, rows=rows)
        reason = "it has no other replica"
        if source.local is not None:
            try:
                return await self._gathered(sample_chunks(source.local, request))
            except (MeshError, TimeoutError) as error:
                reason = f"here: {error}"
        for node, stub in source.peers.items():
            call = stub.SampleVectors(request, timeout=CALL_S)
            try:
                return await self._gathered(aiter(call))
            except grpc.aio.AioRpcError as error:
                reason = f"{node}: {error.code().name} {error.details()}"
            except (ValueError, TimeoutError) as error:
                reason = f"{node}: {error or 'silent'}"
            finally:
                call.cancel()
        raise SampleError(f"shard {source.shard} of {self.collection!r}: {reason}")

    async def _gathered(
        self, replies: AsyncIterator[shard_pb2.SampleVectorsResponse]
    ) -> tuple[int, list[NDArray[np.float16]]]:
        """Raises ValueError for what is not whole rows."""
        live, vectors = 0, []
        try:
            while True:
                async with asyncio.timeout(PIECE_S):
                    reply = await anext(replies)
                live = live or reply.rows_live
                if reply.vectors_f16:
                    vectors.append(np.frombuffer(reply.vectors_f16, dtype="<f2").reshape(-1, self.dim))
        except StopAsyncIteration:
            return live, vectors
