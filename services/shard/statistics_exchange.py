"""Statistics of whole collections: this node's replicas as they are now, other shards as last heard.

BM25 scores of different shards compare only when all use the same statistics. A shard with a replica on this node is
asked directly, at no age. Every other shard's statistics are fetched in the background from any node that has it, and
again only when its content changed; a node that does not answer leaves older ones in use, whose age is reported.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

import grpc

from observability.logs import logger
from ostraka.v1 import shard_pb2, shard_pb2_grpc
from services.runtime.clock import Clock
from services.runtime.config import Config
from services.runtime.topology import Topology
from services.shard.hosted import HostedReplica
from services.shard.lexical_search import lexical_of
from services.shard.statistics import Vocabulary
from services.shard.statistics_service import Received
from services.shard.wire import WireError

CALL_S: Final = 30.0
PIECE_S: Final = 5.0
"""A node that sends nothing for so long is given up: it may be paused, or count a large shard at its leisure."""
REST: Final = 10.0
"""A round that took a second is followed by at least ten of rest: large shards are counted less often."""
Stub: TypeAlias = "shard_pb2_grpc.ShardServiceAsyncStub"  # the generated module has it for type checkers only
Shard: TypeAlias = tuple[str, int]
_LOG = logger("shard")


@dataclass(frozen=True, slots=True)
class Heard:
    """One shard's statistics, and when they were last known to be current."""

    stamp: str
    vocabulary: Vocabulary
    at_s: float


class StatisticsExchange:
    """What one node knows. `run` lives in the event loop; everything else is read from any thread."""

    def __init__(self, replicas: Mapping[Shard, HostedReplica], topology: Topology, clock: Clock) -> None:
        """`replicas`: those of this node."""
        self.heard: dict[Shard, Heard] = {}
        self._replicas = replicas
        self._clock = clock
        self._began_s = clock.monotonic_s()
        self._hosts: dict[Shard, list[str]] = {}
        self.follow(topology)
        self._refused: set[tuple[Shard, str]] = set()

    def follow(self, topology: Topology) -> None:
        """The members have changed; after this node's own replicas have."""
        self._hosts = {
            (collection, shard): [voter.node for voter in members.voters]
            for collection in sorted({name for name, _ in self._replicas})
            for shard, members in sorted(topology.collections[collection].shards.items())
        }

    def local(self, shard: Shard) -> HostedReplica | None:
        """This node's replica of a shard, when its content is current."""
        replica = self._replicas.get(shard)
        usable = replica is not None and replica.engine is not None and not replica.reason and replica.caught_up
        return replica if usable else None

    def age_ms(self, collection: str, own: int) -> int:
        """Age of the oldest statistics that a search of shard `own` uses."""
        return max((self.heard_age_ms((collection, shard)) for shard in self.others(collection, own)), default=0)

    def others(self, collection: str, own: int) -> list[int]:
        """The other shards of the collection."""
        return [shard for name, shard in self._hosts if name == collection and shard != own]

    def heard_age_ms(self, shard: Shard) -> int:
        """Age of what is known of a shard: 0 when it is asked directly; from the start while nothing was heard."""
        if self.local(shard) is not None:
            return 0
        heard = self.heard.get(shard)
        since_s = self._began_s if heard is None else heard.at_s
        return max(0, int((self._clock.monotonic_s() - since_s) * 1_000))

    def bytes_of(self, collection: str) -> int:
        """Memory of what was heard about a collection."""
        return sum(heard.vocabulary.bytes for (name, _), heard in list(self.heard.items()) if name == collection)

    async def run(self, config: Config, stubs: Mapping[str, Stub]) -> None:
        """Rounds until cancelled. `stubs`: of the other nodes, by name."""
        interval_s = config.shard.lexical_statistics_ms / 1_000
        while True:
            began_s = self._clock.monotonic_s()
            try:
                await self.round(config, stubs)
            except Exception as error:
                # A defect ends neither the exchange nor the node; the statistics at hand stay in use.
                _LOG.exception("exchange of statistics failed", error)
            await asyncio.sleep(max(interval_s, REST * (self._clock.monotonic_s() - began_s)))

    async def round(self, config: Config, stubs: Mapping[str, Stub]) -> None:
        """Ask once about every shard that this node cannot look into itself, one after the other."""
        for shard, hosts in self._hosts.items():
            if self.local(shard) is not None:
                self.heard.pop(shard, None)
                continue
            analyzer = lexical_of(config.collections[shard[0]].lexical).analyzer.name
            for node in hosts:
                if node in stubs and await self._ask(shard, node, stubs[node], analyzer):
                    break

    async def _ask(self, shard: Shard, node: str, stub: Stub, analyzer: str) -> bool:
        """Whether the node answered."""
        known = self.heard.get(shard)
        try:
            found = await self._fetch(shard, stub, known, analyzer)
        except grpc.aio.AioRpcError as error:
            _LOG.debug("node not asked for statistics", shard=shard[1], peer=node, error=error.code().name)
            return False
        except (WireError, TimeoutError) as error:
            if (shard, node) not in self._refused:
                self._refused.add((shard, node))
                _LOG.warning("statistics not taken", shard=shard[1], peer=node, reason=str(error))
            return False
        self._refused.discard((shard, node))
        self.heard[shard] = found
        return True

    async def _fetch(self, shard: Shard, stub: Stub, known: Heard | None, analyzer: str) -> Heard:
        """Raises AioRpcError, WireError, TimeoutError."""
        asked_s = self._clock.monotonic_s()  # what is counted is at least as new as the question
        request = shard_pb2.StatisticsRequest(
            collection=shard[0], shard=shard[1], have_stamp=known.stamp if known else ""
        )
        call = stub.Statistics(request, timeout=CALL_S)
        pieces = aiter(call)
        try:
            async with asyncio.timeout(CALL_S):
                first = await anext(pieces)
            if known is not None and first.stamp == known.stamp:
                return Heard(known.stamp, known.vocabulary, asked_s)
            received = Received(first, analyzer)
            while True:
                async with asyncio.timeout(PIECE_S):
                    piece = await anext(pieces)
                received.add(piece)
        except StopAsyncIteration:
            stamp, vocabulary = await asyncio.to_thread(received.whole)
            return Heard(stamp, vocabulary, asked_s)
        finally:
            call.cancel()
