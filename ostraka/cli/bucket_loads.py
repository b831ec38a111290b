"""Asking a running mesh what its buckets hold and how often its shards are searched."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TypeAlias

import grpc

from ostraka.errors import Unavailable
from ostraka.v1 import shard_pb2, shard_pb2_grpc
from services.placement.load import CellLoads
from services.runtime.channel import open_channel
from services.runtime.config import Config
from services.runtime.errors import from_rpc_error
from services.runtime.tls import Role
from services.runtime.topology import BUCKETS, CollectionTopology

ADMIN = "admin"
Reply = shard_pb2.BucketLoadsResponse
Stubs: TypeAlias = "Mapping[str, shard_pb2_grpc.ShardServiceAsyncStub]"


@dataclass(frozen=True, slots=True)
class ShardLook:
    """What the replicas of one shard said."""

    shard: int
    rows: Sequence[int]
    """Live passages of each bucket, from the first replica that answered."""
    row_bytes: int
    searches_per_s: float
    """Over all replicas that answered."""
    answered: int
    silent: Sequence[str]
    """Nodes that did not answer, each with its reason."""


async def look(
    config: Config, topologies: Mapping[str, CollectionTopology], over_s: float, timeout_s: float
) -> dict[str, list[ShardLook]]:
    """Every shard of these collections. Searches are counted for `over_s` from now, or since each node started when 0.

    Raises Unavailable when no replica of a shard answers.
    """
    async with AsyncExitStack() as stack:
        stubs = {}
        for node, settings in config.nodes.items():
            channel = open_channel(config, settings.address, server_role=Role.SHARD, identity=ADMIN)
            stubs[node] = shard_pb2_grpc.ShardServiceStub(await stack.enter_async_context(channel))
        first = await _replies(stubs, topologies, timeout_s)
        second = None
        if over_s > 0:
            await asyncio.sleep(over_s)
            second = await _replies(stubs, topologies, timeout_s)
    return {
        name: [_shard(name, shard, first, second) for shard in sorted(topology.shards)]
        for name, topology in topologies.items()
    }


def loads_of(looks: Sequence[ShardLook], owners: Sequence[int]) -> CellLoads:
    """The load of every bucket. `owners`: bucket -> shard; a search scans every bucket of the shard."""
    by_shard = {each.shard: each for each in looks}
    return CellLoads.measured(
        [by_shard[owner].rows[bucket] for bucket, owner in enumerate(owners)],
        looks[0].row_bytes,
        [by_shard[owner].searches_per_s for owner in owners],
    )


Key = tuple[str, int]
Replies = dict[Key, dict[str, Reply | str]]
"""By collection and shard, then by node: what it said, or why it did not."""


async def _replies(stubs: Stubs, topologies: Mapping[str, CollectionTopology], timeout_s: float) -> Replies:
    seats = [
        ((name, shard), voter.node)
        for name, topology in topologies.items()
        for shard, members in topology.shards.items()
        for voter in members.voters
    ]
    answers = await asyncio.gather(*(_ask(stubs[node], key, timeout_s) for key, node in seats))
    made: Replies = {}
    for (key, node), answer in zip(seats, answers, strict=True):
        made.setdefault(key, {})[node] = answer
    return made


async def _ask(stub: shard_pb2_grpc.ShardServiceAsyncStub, key: Key, timeout_s: float) -> Reply | str:
    request = shard_pb2.BucketLoadsRequest(collection=key[0], shard=key[1])
    try:
        reply = await stub.BucketLoads(request, timeout=timeout_s)
    except grpc.aio.AioRpcError as error:
        return str(from_rpc_error(error))
    return reply if len(reply.rows) == BUCKETS else f"told of {len(reply.rows)} buckets, not {BUCKETS}"


def _shard(name: str, shard: int, first: Replies, second: Replies | None) -> ShardLook:
    newest = (second or first)[name, shard]
    told = {node: reply for node, reply in newest.items() if not isinstance(reply, str)}
    silent = [f"{node}: {reply}" for node, reply in newest.items() if isinstance(reply, str)]
    if not told:
        raise Unavailable(f"no replica of {name!r} shard {shard} says what it holds: {'; '.join(silent)}")
    rate = sum(_rate(reply, first[name, shard].get(node) if second else None) for node, reply in told.items())
    held = next(iter(told.values()))
    return ShardLook(shard, tuple(held.rows), held.row_bytes, rate, len(told), silent)


def _rate(reply: Reply, before: Reply | str | None) -> float:
    """Queries in a second; since the node started without an earlier reply of the same process."""
    if before is None or isinstance(before, str) or before.counted_ms >= reply.counted_ms:
        return reply.searches * 1_000 / max(reply.counted_ms, 1)
    return (reply.searches - before.searches) * 1_000 / (reply.counted_ms - before.counted_ms)
