"""Looks at the databases of a running mesh, because what a replica superseded it soon deletes: the version of a write
that nobody answered can be found there no longer when the run ends."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

from ostraka.v1 import passage_pb2
from services.shard import schema
from services.shard.engine import DATABASE_FILE
from services.shard.store import Database, StoreError
from tests.chaos.recorder import Recorder, Stored

SHARE_OF_KEEPING = 6
"""So many looks in the time that a superseded row is kept: some may fail while a disk is full or lost."""
_PASSAGES = "SELECT rid, document, hlc, src, payload FROM passages WHERE rid > ? ORDER BY rid"


class DiskWatch:
    """Tells the recorder of every passage that some replica has, or had for a while."""

    def __init__(self, nodes_dir: Path, recorder: Recorder, superseded_keep_ms: int) -> None:
        self._nodes_dir, self._recorder = nodes_dir, recorder
        self._pause_s = superseded_keep_ms / 1_000 / SHARE_OF_KEEPING
        self._read_to: dict[Path, int] = {}

    async def run(self) -> None:
        """Look again and again until cancelled."""
        while True:
            self._recorder.sighted(await asyncio.to_thread(self.look))
            await asyncio.sleep(self._pause_s)

    def look(self) -> list[Stored]:
        """What is new in any database."""
        found: list[Stored] = []
        for path in sorted(self._nodes_dir.glob(f"*/*/{DATABASE_FILE}")):
            with contextlib.suppress(StoreError):  # lost, or not yet one
                found += self._new_rows(path)
        return found

    def _new_rows(self, path: Path) -> list[Stored]:
        database = Database(path, writable=False)
        try:
            rows = database.rows(_PASSAGES, (self._read_to.get(path, -1),))
        finally:
            database.close()
        if rows:
            self._read_to[path] = rows[-1][0]
        return [
            (document_id, passage_pb2.Passage.FromString(payload).text.encode(), schema.version_of(hlc, source))
            for _, document_id, hlc, source, payload in rows
        ]
