"""Serving a pull: the current state of what the wanted batches touched, in pieces that stand alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from ostraka.v1 import shard_pb2
from services.quorum.gtid import GtidSet
from services.shard.engine import Engine
from services.shard.rows_reader import RowsReader
from services.shard.store import Database
from services.shard.wire import bundle_to_wire

DOCUMENTS_PER_PIECE = 64


async def stream(engine: Engine, want: GtidSet) -> AsyncIterator[shard_pb2.PullResponse]:
    """Pieces for those of `want` that are applied here, all read from one committed state at least as new as the
    applied set announced. Raises DamagedRowError, StoreError."""
    applied = engine.view.applied
    database = await asyncio.to_thread(Database, engine.database_path, writable=False)
    try:
        with database.reading():
            pieces = engine.core.pull(want, RowsReader(database), DOCUMENTS_PER_PIECE)
            while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
                yield bundle_to_wire(piece, applied)
    finally:
        database.close()
