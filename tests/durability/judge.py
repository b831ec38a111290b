"""Whether a replica opened from an image of its disk has everything it promised, and nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from services.quorum.rows import HeadRow, PassageRow
from services.shard import search
from services.shard.engine import DATABASE_FILE, Engine
from services.shard.rows_reader import RowsReader
from services.shard.store import Database
from tests.durability.workload import EPOCH, REPLICA, WAIT_S, Known, open_codecs, open_engine
from tests.unit.shard_rows import FixedClock, batch

NEAREST_ASKED = 8


def violations(root: Path, known: Known, *, after: bool = True) -> list[str]:
    """Open what is in `root` and compare; everything wrong, in words. `after`: try a write and a flush as well."""
    try:
        engine = open_engine(root, FixedClock(), _ignored)
    except Exception as error:  # whatever it is, the replica does not open
        return [f"the replica does not open: {error!r}"]
    try:
        return [*_rows(engine, known), *_codecs(root, known), *(_goes_on(engine, known) if after else ())]
    finally:
        engine.close()


def _ignored(reason: str) -> None:
    pass


def _rows(engine: Engine, known: Known) -> list[str]:
    view = engine.view
    found = []
    applied = {
        seq for spans in view.applied.intervals().values() for low, high in spans for seq in range(low, high + 1)
    }
    if missing := known.acknowledged - applied:
        found.append(f"acknowledged batches are not applied: {sorted(missing)}")
    if unknown := applied - {entry.gtid.seq for entry in known.issued}:
        found.append(f"applied batches that nobody wrote: {sorted(unknown)}")
    if engine.ledger.found:
        found.append(f"{engine.ledger.found} things were found damaged")
    sealed = {part.segment.name for part in view.parts}
    expected = known.passages(view.applied)
    names = {f"{document_id}#{n}" for document_id, (_, count) in expected.items() for n in range(count)}
    with engine.readers.lend() as reader:
        stored = _stored(reader)
        published = reader.segments().keys()
    if stored != written(known, expected):
        found.append("heads or passages are not those of the applied batches")
    if view.rows_live != len(names) or view.documents_live != len(expected):
        found.append(f"{view.rows_live} rows, {view.documents_live} documents live, not {len(names)}, {len(expected)}")
    if sealed != published:
        found.append(f"published segments are not served: {sorted(published - sealed)}")
    strays = {path.name for path in engine.segments_dir.iterdir()} - sealed if engine.segments_dir.is_dir() else set()
    if strays:
        found.append(f"strays stay: {sorted(strays)}")
    return found + _searches(engine, known, expected, names)


def _stored(reader: RowsReader) -> dict[str, tuple[HeadRow, list[PassageRow]]]:
    heads = [head for head in reader.heads() if isinstance(head, HeadRow) and head.passages]
    return {head.document_id: (head, reader.live_passages(head.document_id)) for head in heads}


def written(known: Known, expected: dict[str, tuple[int, int]]) -> dict[str, tuple[HeadRow, list[PassageRow]]]:
    by_seq = {entry.gtid.seq: entry for entry in known.issued}
    return {
        document_id: (
            next(head for head in by_seq[seq].heads if head.document_id == document_id),
            [row for row in by_seq[seq].passages if row.document_id == document_id],
        )
        for document_id, (seq, _) in expected.items()
    }


def _searches(engine: Engine, known: Known, expected: dict[str, tuple[int, int]], names: set[str]) -> list[str]:
    """An exact search for more than there is finds everything; each of some rows is its own nearest one."""
    if not names:
        return []
    rows = [row for _, passages in written(known, expected).values() for row in passages]
    asked = rows[:: max(1, len(rows) // NEAREST_ASKED)]
    queries = np.stack([np.frombuffer(row.vector, dtype="<f2").astype(np.float32) for row in asked])
    found = []
    everything = search.SearchTask(queries[:1], len(names) + 5, exact=True, include_payload=False)
    (result,) = search.run(engine.view, engine.readers, everything)
    hits = {f"{hit.document_id}#{hit.ordinal}" for hit in result.hits}
    if hits != names:
        found.append(f"a search misses {sorted(names - hits)[:5]} and has {sorted(hits - names)[:5]} too many")
    nearest = search.SearchTask(queries, 1, exact=False, include_payload=False)
    for row, result in zip(asked, search.run(engine.view, engine.readers, nearest), strict=True):
        if (result.hits[0].document_id, result.hits[0].ordinal) != (row.document_id, row.ordinal):
            found.append(f"{row.document_id}#{row.ordinal} is not its own nearest row")
    return found


def _codecs(root: Path, known: Known) -> list[str]:
    if known.codec is None:
        return []
    current = open_codecs(root).current()
    if current is None or current.record.generation < known.codec.generation:
        return [f"codec {known.codec.generation} is lost; there is {current and current.record.generation}"]
    return []


def _goes_on(engine: Engine, known: Known) -> list[str]:
    """The next write is taken, found, and still there when the file is opened again."""
    entry = batch(known.issued[-1].gtid.seq + 1 if known.issued else 1, [("afterwards", 1)])
    future = engine.write(entry, EPOCH)
    if future is None or future.result(WAIT_S).status.name != "OK":
        return ["the next write is refused"]
    query = np.frombuffer(entry.passages[0].vector, dtype="<f2").astype(np.float32)
    (result,) = search.run(engine.view, engine.readers, search.SearchTask(query[None, :], 1, False, False))
    return [] if result.hits[0].document_id == "afterwards" else ["the next write is not found"]


def is_sound(root: Path) -> bool:
    """SQLite's own opinion of the database."""
    database = Database(root / REPLICA / DATABASE_FILE, writable=True)
    try:
        return database.rows("PRAGMA integrity_check") == [("ok",)]
    finally:
        database.close()
