"""Rebuilding a replica's view from disk: SQLite says what lives, segments that verify supply what they can."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from observability.logs import logger
from services.shard import schema
from services.shard.damage import RowName
from services.shard.delta import Delta
from services.shard.rows_reader import RowsReader
from services.shard.segment import Segment, SegmentDamagedError, open_segment
from services.shard.view import DIGEST_MODULUS, Part, View, index_epoch

ROWS_PER_READ = 4_096
_LOG = logger("shard")


@dataclass(frozen=True, slots=True)
class Loaded:
    """A view and what was wrong on the way to it."""

    view: View
    damaged_segments: tuple[str, ...]
    damaged_rows: tuple[RowName, ...]


def load_view(reader: RowsReader, segments_dir: Path, dim: int) -> Loaded:
    """The view of the last committed state. Damaged segments' rows go to the delta. Raises StoreError."""
    applied, hlc_max = reader.applied()
    digest, documents, damaged = _digest(reader)
    live = np.sort(np.array(reader.live_rids(), dtype=np.int64))
    segments, bad_segments = _segments(reader, segments_dir, dim)
    parts = tuple(Part.of(segment, live) for segment in segments)
    covered = np.concatenate([np.empty(0, dtype=np.int64), *(segment.rids for segment in segments)])
    delta, bad_rows = read_delta(reader, np.setdiff1d(live, covered), dim)
    view = View(
        number=0,
        applied=applied,
        hlc_max=hlc_max,
        parts=parts,
        delta=delta,
        digest=digest,
        documents_live=documents,
        index_epoch=index_epoch(parts, applied),
    )
    return Loaded(view, tuple(bad_segments), (*damaged, *bad_rows))


def read_delta(reader: RowsReader, rids: NDArray[np.int64], dim: int) -> tuple[Delta, list[RowName]]:
    """A delta of these rows, without those that fail their checksum, which are named. Raises StoreError."""
    vectors = np.empty((len(rids), dim), dtype=np.float16)
    sound = np.zeros(len(rids), dtype=np.bool_)
    damaged: list[RowName] = []
    for start in range(0, len(rids), ROWS_PER_READ):
        found, bad = reader.vectors([int(rid) for rid in rids[start : start + ROWS_PER_READ]])
        damaged += bad
        for offset, vector in enumerate(found, start=start):
            if vector is not None:
                vectors[offset] = np.frombuffer(vector, dtype="<f2")
                sound[offset] = True
    return Delta.of(rids[sound], vectors[sound]), damaged


def remove_strays(segments_dir: Path, published: frozenset[str]) -> None:
    """Remove directories that no published segment uses: what a crash or a rebuild left behind."""
    for entry in segments_dir.iterdir() if segments_dir.is_dir() else ():
        if entry.name not in published:
            shutil.rmtree(entry, ignore_errors=True)


def _digest(reader: RowsReader) -> tuple[int, int, list[RowName]]:
    digest, documents = 0, 0
    damaged: list[RowName] = []
    for head in reader.heads():
        if isinstance(head, RowName):
            damaged.append(head)
            continue
        digest += schema.head_digest(head)
        documents += head.passages > 0
    return digest % DIGEST_MODULUS, documents, damaged


def _segments(reader: RowsReader, segments_dir: Path, dim: int) -> tuple[list[Segment], list[str]]:
    found: list[Segment] = []
    bad: list[str] = []
    for name, sha256 in sorted(reader.segments().items()):
        try:
            segment = open_segment(segments_dir / name, sha256)
            if segment.manifest.dim != dim:
                raise SegmentDamagedError(f"segment {name} has {segment.manifest.dim} dimensions, not {dim}")
            found.append(segment)
        except SegmentDamagedError as error:
            _LOG.error("segment damaged; its rows are served from the delta until it is rebuilt", reason=str(error))
            bad.append(name)
    found.sort(key=lambda segment: (-segment.rows, segment.name))
    return found, bad
