"""Rebuilding a replica's view from disk: SQLite says what lives, segments that verify supply what they can.

Only the delta's rows are read; of all others the live bits suffice, so a restart takes as long as verifying the
segments' files.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from observability.logs import logger
from services.shard import alive, files, live_bits
from services.shard.analyzer import Analyzer, RowTerms
from services.shard.damage import RowName
from services.shard.delta import Delta
from services.shard.lexical_delta import LexicalDelta
from services.shard.live_bits import LiveBits
from services.shard.replica_state import read_state
from services.shard.rows_reader import RowsReader
from services.shard.segment import Segment, SegmentDamagedError, open_segment
from services.shard.view import Part, View, index_epoch

ROWS_PER_READ = 1_024
_LOG = logger("shard")


@dataclass(frozen=True, slots=True)
class Loaded:
    """A view and what was wrong on the way to it."""

    view: View
    damaged_segments: tuple[str, ...]
    damaged_rows: tuple[RowName, ...]


def load_view(reader: RowsReader, segments_dir: Path, dim: int, analyzer: Analyzer) -> Loaded:
    """The view of the last committed state. Damaged segments' rows go to the delta, and so do those of segments whose
    words another analyzer found. Raises StoreError."""
    applied, hlc_max = reader.applied()
    state = read_state(reader.database)
    assert state is not None, "`applied` looked at it"
    live, damaged = live_bits.read(reader.database)
    assert not damaged, "the database was prepared"
    segments, bad_segments = _segments(reader, segments_dir, dim, analyzer)
    parts = tuple(_part(segment, live) for segment in segments)
    delta, bad_rows = read_delta(reader, live.without(*(segment.rids for segment in segments)), dim, analyzer)
    view = View(
        number=0,
        applied=applied,
        hlc_max=hlc_max,
        parts=parts,
        delta=delta,
        digest=state.digest,
        documents_live=state.documents,
        index_epoch=index_epoch(parts, applied),
    )
    return Loaded(view, tuple(bad_segments), tuple(bad_rows))


@dataclass(frozen=True, slots=True)
class ReadRows:
    """Rows as a delta takes them; `damaged` are left out."""

    rids: NDArray[np.int64]
    vectors: NDArray[np.float16]
    """(len(rids), dim)"""
    terms: list[RowTerms]
    damaged: list[RowName]


def read_rows(reader: RowsReader, rids: NDArray[np.int64], dim: int, analyzer: Analyzer) -> ReadRows:
    """Read and verify rows, and find their terms. Raises StoreError."""
    vectors = np.empty((len(rids), dim), dtype=np.float16)
    sound = np.zeros(len(rids), dtype=np.bool_)
    damaged: list[RowName] = []
    terms: list[RowTerms] = []
    for start in range(0, len(rids), ROWS_PER_READ):
        found, bad = reader.sound([int(rid) for rid in rids[start : start + ROWS_PER_READ]])
        damaged += bad
        for offset, row in enumerate(found, start=start):
            if row is not None:
                vectors[offset] = np.frombuffer(row.vector, dtype="<f2")
                sound[offset] = True
                terms.append(analyzer.passage(row.payload))
    return ReadRows(rids[sound], vectors[sound], terms, damaged)


def read_delta(
    reader: RowsReader, rids: NDArray[np.int64], dim: int, analyzer: Analyzer
) -> tuple[Delta, list[RowName]]:
    """A delta of these rows, without those that fail their checksum, which are named. Raises StoreError."""
    read = read_rows(reader, rids, dim, analyzer)
    return Delta.of(read.rids, read.vectors, LexicalDelta.empty().plus(read.terms)), read.damaged


def remove_strays(segments_dir: Path, published: frozenset[str]) -> None:
    """Remove directories that no published segment uses: what a crash or a rebuild left behind."""
    for entry in segments_dir.iterdir() if segments_dir.is_dir() else ():
        if entry.name not in published:
            files.remove_tree(entry)


def _part(segment: Segment, live: LiveBits) -> Part:
    mask = live.alive(segment.rids)
    return Part(segment, alive.from_mask(mask), int(mask.sum()))


def _segments(reader: RowsReader, segments_dir: Path, dim: int, analyzer: Analyzer) -> tuple[list[Segment], list[str]]:
    found: list[Segment] = []
    bad: list[str] = []
    for name, sha256 in sorted(reader.segments().items()):
        try:
            segment = open_segment(segments_dir / name, sha256)
            if segment.manifest.dim != dim:
                raise SegmentDamagedError(f"segment {name} has {segment.manifest.dim} dimensions, not {dim}")
            if segment.lexical.analyzer != analyzer.name:
                named = f"{segment.lexical.analyzer}, not {analyzer.name}"
                raise SegmentDamagedError(f"segment {name} was analysed by {named}")
            found.append(segment)
        except SegmentDamagedError as error:
            _LOG.error("segment damaged; its rows are served from the delta until it is rebuilt", reason=str(error))
            bad.append(name)
    found.sort(key=lambda segment: (-segment.rows, segment.name))
    return found, bad
