"""Nodes ask each other for greater codecs until all have the greatest.

Pulling alone suffices: a node that trained, or was down for a week, needs nobody to remember it. Each answer also tells
that the node is alive, which is all that ownership of training needs (see codec_policy).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import grpc

from observability.logs import logger
from ostraka.v1 import shard_pb2, shard_pb2_grpc
from services.runtime.clock import Clock
from services.shard.codec_wire import record_from_wire, record_to_wire
from services.shard.codecs import CODEC_BYTES_MAX, CodecRecord, CodecRefusedError, CodecStore
from services.shard.wire import WireError

INTERVAL_S = 2.0
HURRY_S = 0.05
"""The least pause between two rounds."""
CALL_S = 30.0
PIECE_S = 2.0
"""A node that sends nothing for so long is given up: it may be paused."""
ASKED_AT_ONCE = 4
_LOG = logger("shard")
_RECOVERABLE = (grpc.aio.AioRpcError, WireError, CodecRefusedError, OSError, TimeoutError)


class CodecExchange:
    """The rounds of one node, over all its collections. Lives in one event loop."""

    def __init__(
        self,
        stores: Mapping[str, CodecStore],
        peers: Mapping[str, Mapping[str, shard_pb2_grpc.ShardServiceAsyncStub]],
        clock: Clock,
        interval_s: float = INTERVAL_S,
    ) -> None:
        """`peers`: by collection the other nodes that host it, by node name."""
        self._stores = stores
        self._peers = peers
        self._clock = clock
        self._interval_s = interval_s
        self._slots = asyncio.Semaphore(ASKED_AT_ONCE)
        self._hint = asyncio.Event()
        self.refused: set[tuple[str, str]] = set()
        """(collection, node) whose last codec was not sound."""
        began_s = clock.monotonic_s()
        self.heard_s: dict[str, float] = {node: began_s for nodes in peers.values() for node in nodes}
        """When each node last answered; at first, when listening began."""

    def follow(self, peers: Mapping[str, Mapping[str, shard_pb2_grpc.ShardServiceAsyncStub]]) -> None:
        """The nodes that host the collections have changed."""
        self._peers = peers
        now_s = self._clock.monotonic_s()
        for node in {node for nodes in peers.values() for node in nodes}:
            self.heard_s.setdefault(node, now_s)

    def hurry(self) -> None:
        """Ask now rather than at the next interval."""
        self._hint.set()

    async def run(self) -> None:
        """Rounds until cancelled."""
        turn = 0
        while True:
            await self.round()
            turn += 1
            # 0.75 to 1.25 of the interval, different each turn: nodes started together drift apart.
            pause_s = self._interval_s * (0.75 + (turn * 37 % 64) / 128)
            await asyncio.sleep(min(HURRY_S, pause_s))
            try:
                await asyncio.wait_for(self._hint.wait(), pause_s)
            except TimeoutError:
                continue
            finally:
                self._hint.clear()

    async def round(self) -> None:
        """Ask every node for every collection once; failures are logged and left to the next round."""
        asked = [(collection, node) for collection, nodes in self._peers.items() for node in nodes]
        await asyncio.gather(*(self._ask(collection, node) for collection, node in asked))

    async def _ask(self, collection: str, node: str) -> None:
        try:
            async with self._slots:
                found = await self._fetch(collection, node)
            self.heard_s[node] = self._clock.monotonic_s()
            if found is not None:
                await asyncio.to_thread(self._stores[collection].offer, *found)
            self.refused.discard((collection, node))
        except grpc.aio.AioRpcError as error:
            _LOG.debug("node not asked for codecs", collection=collection, peer=node, error=error.code().name)
        except _RECOVERABLE as error:
            if (collection, node) not in self.refused:
                self.refused.add((collection, node))
                _LOG.warning("codec not taken", collection=collection, peer=node, reason=str(error))
        except Exception as error:
            # A defect met with one node ends neither the round nor the exchange.
            _LOG.exception("codec exchange failed", error, collection=collection, peer=node)

    async def _fetch(self, collection: str, node: str) -> tuple[CodecRecord, bytes] | None:
        """The node's codec when it is greater than ours. Raises AioRpcError, WireError, TimeoutError."""
        request = shard_pb2.GetCodecRequest(collection=collection)
        own = self._stores[collection].record()
        if own is not None:
            request.have.CopyFrom(record_to_wire(own))
        stub = self._peers.get(collection, {}).get(node)
        if stub is None:
            return None  # it left meanwhile
        call = stub.GetCodec(request, timeout=CALL_S)
        pieces = aiter(call)
        data = bytearray()
        try:
            async with asyncio.timeout(PIECE_S):
                first = await anext(pieces)
            if not first.HasField("record"):
                return None
            record = record_from_wire(first.record, "record")
            while True:
                async with asyncio.timeout(PIECE_S):
                    piece = await anext(pieces)
                data += piece.data
                if len(data) > CODEC_BYTES_MAX:
                    raise WireError("data", f"a codec has at most {CODEC_BYTES_MAX} bytes")
        except StopAsyncIteration:
            return (record, bytes(data)) if data else None
        finally:
            call.cancel()
