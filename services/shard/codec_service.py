"""What the ShardService answers about codecs: the bytes of the current one, and rows to train the next one on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import numpy as np

from ostraka.v1 import shard_pb2
from services.runtime.errors import InvalidArgument, Unavailable
from services.shard import sampling
from services.shard.codec_wire import record_from_wire, record_to_wire
from services.shard.codecs import CodecStore
from services.shard.hosted import HostedReplica
from services.shard.store import StoreError
from services.shard.wire import WireError

CHUNK_BYTES = 1024 * 1024
SAMPLE_ROWS_MAX = 1_048_576
RETRY_MS = 1_000


async def codec_chunks(
    store: CodecStore | None, request: shard_pb2.GetCodecRequest
) -> AsyncIterator[shard_pb2.CodecChunk]:
    """The current codec if it is greater than what the caller has: its record, then its bytes; else one empty chunk.

    `store` None: this node does not host the collection. Raises InvalidArgument.
    """
    try:
        have = record_from_wire(request.have, "have").rank if request.HasField("have") else (0, "")
    except WireError as error:
        raise InvalidArgument(str(error), error.field) from error
    known = store.record() if store else None
    codec = await asyncio.to_thread(store.current) if store and known and known.rank > have else None
    if codec is None or codec.record.rank <= have:
        yield shard_pb2.CodecChunk()
        return
    yield shard_pb2.CodecChunk(record=record_to_wire(codec.record))
    for start in range(0, len(codec.data), CHUNK_BYTES):
        yield shard_pb2.CodecChunk(data=codec.data[start : start + CHUNK_BYTES])


async def sample_chunks(
    replica: HostedReplica | None, request: shard_pb2.SampleVectorsRequest
) -> AsyncIterator[shard_pb2.SampleVectorsResponse]:
    """How many rows live here, then vectors of some. Raises InvalidArgument, Unavailable: ask another replica."""
    if request.rows > SAMPLE_ROWS_MAX:
        raise InvalidArgument(f"rows must be at most {SAMPLE_ROWS_MAX}, not {request.rows}", "rows")
    if replica is None or replica.engine is None or replica.reason or not replica.caught_up:
        why = "not hosted here" if replica is None else replica.reason or "the replica is catching up"
        raise Unavailable(f"shard {request.shard} of {request.collection!r}: {why}", retry_ms=RETRY_MS)
    engine = replica.engine
    view = engine.view
    yield shard_pb2.SampleVectorsResponse(rows_live=view.rows_live)
    if not request.rows:
        return
    found = sampling.pieces(engine, await asyncio.to_thread(sampling.drawn, view, request.rows))
    try:
        while (piece := await asyncio.to_thread(next, found, None)) is not None:
            yield shard_pb2.SampleVectorsResponse(vectors_f16=np.ascontiguousarray(piece, dtype="<f2").tobytes())
    except StoreError as error:
        engine.note_failure(error)
        raise Unavailable(str(error), retry_ms=RETRY_MS) from error
