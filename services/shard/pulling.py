"""Serving a pull: the current state of what the wanted batches touched, in messages that stand alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from ostraka.v1 import shard_pb2
from services.quorum.gtid import GtidSet
from services.quorum.rows import DocumentState, PullBundle
from services.shard.engine import Engine
from services.shard.rows_reader import RowsReader
from services.shard.store import Database
from services.shard.wire import bundle_to_wire

T = TypeVar("T")
DOCUMENTS_PER_BUNDLE = 32
MESSAGE_BYTES = 4 * 1024 * 1024
"""Documents are put into one message up to this; a larger document travels alone."""


async def stream(engine: Engine, want: GtidSet, have: GtidSet) -> AsyncIterator[shard_pb2.PullResponse]:
    """Messages for those of `want` that are applied here, all read from one committed state at least as new as the
    applied set announced. Raises DamagedRowError, StoreError."""
    applied = engine.view.applied
    database = await asyncio.to_thread(Database, engine.database_path, writable=False)
    try:
        with database.reading():
            bundles = engine.core.pull(want, RowsReader(database), DOCUMENTS_PER_BUNDLE, have)
            while (bundle := await _settled(asyncio.to_thread(next, bundles, None))) is not None:
                for piece in pieces(bundle):
                    yield bundle_to_wire(piece, applied)
    finally:
        database.close()


async def _settled(work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is waited for even when the caller is cancelled: its thread holds the connection."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise


def pieces(bundle: PullBundle) -> Iterator[PullBundle]:
    """The bundle in parts of about MESSAGE_BYTES. Only the last one covers the batches; `join` undoes it."""
    gathered: list[DocumentState] = []
    size = sum(len(row.vector) + len(row.payload) for row in bundle.staged)
    for document in bundle.documents:
        weight = sum(len(row.vector) + len(row.payload) for row in document.passages)
        if gathered and size + weight > MESSAGE_BYTES:
            yield PullBundle(GtidSet.EMPTY, tuple(gathered), (), (), bundle.hlc_max)
            gathered, size = [], 0
        gathered.append(document)
        size += weight
    yield replace(bundle, documents=tuple(gathered))


def join(parts: Sequence[PullBundle]) -> PullBundle:
    """The bundle that `pieces` cut: its documents show together with the batches that wrote them, or not at all."""
    *before, last = parts
    documents = [document for part in before for document in part.documents]
    return replace(last, documents=(*documents, *last.documents))
