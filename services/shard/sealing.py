"""When the delta becomes a segment, which segments it replaces, and how one is built beside running traffic.

The policy is a pure function of a view. Building reads SQLite in one read transaction and never touches the writer;
only publication does, and rows that died meanwhile are dead in the published bitmap.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from observability.logs import logger
from services.runtime.config import ShardConfig
from services.shard import files, segment, segment_build
from services.shard.damage import DamagedRowError
from services.shard.engine import Engine
from services.shard.lexical_view import lexical_sources
from services.shard.rows_reader import RowsReader
from services.shard.view import View

SEGMENTS_MAX = 2
"""A third segment becomes a merge of all: each one costs a search of its own."""
DEAD_SHARE_MAX = 0.2
RETRAIN_GROWTH = 2.0
"""A codec trained on fewer than 1 / RETRAIN_GROWTH of the rows is trained anew."""
_LOG = logger("shard")


@dataclass(frozen=True, slots=True)
class Sealing:
    """What to build: the rows to cover, the segments they replace, and whose codec to reuse (None: train)."""

    rids: NDArray[np.int64]
    replaced: tuple[str, ...]
    codec_of: str | None


def due(view: View, config: ShardConfig) -> Sealing | None:
    """What should be built for this view, or None. Pure."""
    delta = view.delta.rids[view.delta.live_positions()]
    full = len(delta) >= config.delta_rows_flush
    sealed_rows = sum(part.segment.rows for part in view.parts)
    sealed_dead = sum(part.dead for part in view.parts)
    if not view.parts:
        ready = full and view.rows_live >= config.train_rows_min
        return Sealing(delta, (), None) if ready else None
    worn = sealed_dead > DEAD_SHARE_MAX * sealed_rows
    if not full and not worn:
        return None
    largest = view.parts[0].segment
    if full and not worn and len(view.parts) < SEGMENTS_MAX:
        return Sealing(delta, (), largest.name)
    if view.rows_live < config.train_rows_min:
        return None
    everything = view.live_rids()
    replaced = tuple(part.segment.name for part in view.parts)
    retrain = len(everything) > RETRAIN_GROWTH * largest.manifest.trained_rows_basis
    return Sealing(everything, replaced, None if retrain else largest.name)


def build_and_publish(engine: Engine, sealing: Sealing) -> None:
    """Build one segment in the calling thread and publish it. Raises OSError, StoreError, DamagedRowError."""
    name = _new_name(sealing)
    view = engine.view
    owner = next((part.segment for part in view.parts if part.segment.name == sealing.codec_of), None)
    files.make_directory(engine.segments_dir)
    try:
        with engine.readers.lend() as reader, reader.database.reading():
            plan = segment_build.Plan(
                name=name,
                rids=_ordered(reader, np.intersect1d(sealing.rids, view.live_rids())),
                dim=engine.dim,
                codec=owner.codec() if owner else None,
                trained_rows=owner.manifest.trained_rows if owner else 0,
                trained_rows_basis=owner.manifest.trained_rows_basis if owner else 0,
                recall_target=engine.config.recall_target,
                threads=os.cpu_count() or 1,
                analyzer=engine.lexical.analyzer.name,
                lexical=lexical_sources(view),
            )
            manifest, building = segment_build.build(plan, _vectors_from(reader, engine.dim), engine.segments_dir)
        final = engine.segments_dir / name
        files.remove_tree(final)  # of an attempt that was written but could not be published
        sha256 = segment.publish(building, final, manifest)
    except BaseException:
        files.remove_tree(engine.segments_dir / f"{name}.tmp")
        raise
    engine.seal(segment.map_segment(final, manifest), sha256, sealing.replaced).result()
    _LOG.info(
        "segment published",
        replica=engine.replica_id,
        segment=name,
        rows=manifest.rows,
        index_kind=manifest.factory,
        nprobe=manifest.nprobe,
        candidates=manifest.candidates_10,
        recall=manifest.recall,
        replaced=list(sealing.replaced),
    )


def _new_name(sealing: Sealing) -> str:
    """A name no earlier segment of this replica had: rows are never sealed twice together with the same ones."""
    content = sealing.rids.tobytes() + "|".join(sealing.replaced).encode()
    return "segment-" + hashlib.blake2b(content, digest_size=8).hexdigest()


def _ordered(reader: RowsReader, rids: NDArray[np.int64]) -> NDArray[np.int64]:
    """The rows that still exist, in segment order."""
    keys = reader.keys([int(rid) for rid in rids])
    hashed = [segment_build.position_key(document_id, ordinal) for document_id, ordinal in keys.values()]
    return segment_build.in_order(list(keys), hashed)


def _vectors_from(reader: RowsReader, dim: int) -> segment_build.Reader:
    def read(rids: NDArray[np.int64]) -> NDArray[np.float16]:
        found, bad = reader.vectors([int(rid) for rid in rids])
        if bad:
            raise DamagedRowError(bad)
        flat = b"".join(vector for vector in found if vector is not None)
        return np.frombuffer(flat, dtype="<f2").reshape(len(rids), dim)

    return read
