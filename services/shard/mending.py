"""Making good what this replica can: a part of the view whose vectors are wrong is replaced by rows from SQLite.

Rows themselves come from peers (`services.shard.repair`).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from services.shard import live_bits
from services.shard.engine import Engine
from services.shard.loading import read_delta, read_rows
from services.shard.rows_reader import RowsReader
from services.shard.view import View, index_epoch
from services.shard.view_search import DELTA


def discard_part(engine: Engine, name: str) -> None:
    """Serve the rows of a part from a delta read anew; the next build seals them. Raises StoreError."""
    if name == DELTA:
        engine.replace_part(name, lambda view: _delta_read_anew(engine, view)).result()
        return
    if all(part.segment.name != name for part in engine.view.parts):
        engine.ledger.part_replaced(name)
        return
    # Read beside running traffic; only rows that died meanwhile are left out in the writer thread.
    with engine.readers.lend() as reader, reader.database.reading():
        read = read_rows(reader, _rids_without(reader, engine.view, name), engine.dim, engine.lexical.analyzer)
    if read.damaged:
        engine.note_damage(read.damaged)

    def without(view: View) -> View:
        with engine.readers.lend() as reader:
            kept = np.isin(read.rids, _rids_without(reader, view, name))
        terms = [entry for entry, keep in zip(read.terms, kept, strict=True) if keep]
        parts = tuple(part for part in view.parts if part.segment.name != name)
        return replace(
            view,
            number=view.number + 1,
            parts=parts,
            delta=view.delta.plus(read.rids[kept], read.vectors[kept], terms),
            index_epoch=index_epoch(parts, view.applied),
        )

    engine.replace_part(name, without).result()


def _rids_without(reader: RowsReader, view: View, name: str) -> NDArray[np.int64]:
    """The live rows that the view has nowhere but in the part `name`, whose own list of rids may be what is wrong."""
    live, _ = live_bits.read(reader.database)
    others = [part.segment.rids for part in view.parts if part.segment.name != name]
    return live.without(view.delta.rids, *others)


def _delta_read_anew(engine: Engine, view: View) -> View:
    rids = view.delta.rids[view.delta.live_positions()]
    with engine.readers.lend() as reader:
        delta, damaged = read_delta(reader, rids, engine.dim, engine.lexical.analyzer)
    if damaged:
        engine.note_damage(damaged)
    return replace(view, number=view.number + 1, delta=delta)
