"""A sealed segment: a FAISS file, the raw vectors, and the row ids, immutable on disk.

A segment is derived data. SQLite names its directory and the sha256 of its manifest; the manifest names the sha256
of every other file. Anything missing or different is a `SegmentDamagedError`, and the rows are
served from SQLite instead.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.shard import faiss_index, files
from services.shard.lexical_segment import LEXICAL_FILE, LexicalSegment, open_lexical

INDEX_FILE = "index.faiss"
CODEC_FILE = "codec.faiss"
VECTORS_FILE = "vectors.npy"
RIDS_FILE = "rids.npy"
ORDER_FILE = "order.npy"
MANIFEST_FILE = "manifest.json"
DATA_FILES = (INDEX_FILE, CODEC_FILE, VECTORS_FILE, RIDS_FILE, ORDER_FILE, LEXICAL_FILE)
FORMAT = 2


class SegmentDamagedError(Exception):
    """A segment's files are missing, cut or changed; the message names the file."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a segment is and how it is to be searched."""

    format: int
    name: str
    rows: int
    dim: int
    factory: str
    codec: str
    """Codec generation: first 8 hex digits of the trained codec's sha256."""
    trained_rows: int
    trained_rows_basis: int
    """Rows there were when the codec was trained; it is trained anew when they have doubled."""
    nprobe: int
    candidates_10: int
    """Candidates to re-rank for k <= 10, chosen by measurement when the segment was built."""
    candidates_100: int
    recall: float
    """Recall@10 measured with those settings on the segment's own rows."""
    sha256: dict[str, str]

    def candidates(self, k: int) -> int:
        """Candidates to re-rank for `k` hits, on the line through the two measured points."""
        if k <= 10:
            return self.candidates_10
        slope = max(1.0, (self.candidates_100 - self.candidates_10) / 90)
        return int(self.candidates_10 + slope * (k - 10)) + 1

    def to_bytes(self) -> bytes:
        return json.dumps(asdict(self), sort_keys=True, indent=1).encode()


@dataclass(frozen=True, slots=True)
class Segment:
    """An open segment: positions 0..rows-1 in the index, the memory-mapped vectors and the row ids agree."""

    manifest: Manifest
    directory: Path
    index: faiss_index.InvertedFile
    vectors: NDArray[np.float16]
    """(rows, dim), memory-mapped."""
    rids: NDArray[np.int64]
    """(rows,), by position, memory-mapped."""
    order: NDArray[np.int64]
    """(rows,), positions in ascending order of rid, memory-mapped."""
    lexical: LexicalSegment
    """Postings by position, memory-mapped."""

    @property
    def name(self) -> str:
        return self.manifest.name

    @property
    def rows(self) -> int:
        return self.manifest.rows

    def positions(self, rids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Positions of those of `rids` that this segment holds, in no particular order."""
        found = np.searchsorted(self.rids, rids, sorter=self.order)
        inside = found < self.rows
        positions = self.order[found[inside]]
        return np.asarray(positions[self.rids[positions] == rids[inside]], dtype=np.int64)

    def codec(self) -> bytes:
        return (self.directory / CODEC_FILE).read_bytes()

    def bytes_on_disk(self) -> int:
        return sum((self.directory / name).stat().st_size for name in DATA_FILES)


def sha256_of(path: Path) -> str:
    """Hex sha256 of a file. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def publish(building: Path, final: Path, manifest: Manifest) -> str:
    """Make a built directory durable under its final name; returns the manifest's sha256. Raises OSError."""
    data = manifest.to_bytes()
    (building / MANIFEST_FILE).write_bytes(data)
    files.publish_directory(building, final)
    return hashlib.sha256(data).hexdigest()


def open_segment(directory: Path, manifest_sha256: str) -> Segment:
    """Open and verify a published segment. Raises SegmentDamagedError."""
    try:
        data = (directory / MANIFEST_FILE).read_bytes()
        if hashlib.sha256(data).hexdigest() != manifest_sha256:
            raise SegmentDamagedError(f"{directory / MANIFEST_FILE} differs from what was published")
        manifest = Manifest(**json.loads(data))
        for name in DATA_FILES:
            if sha256_of(directory / name) != manifest.sha256[name]:
                raise SegmentDamagedError(f"{directory / name} differs from its manifest")
        return map_segment(directory, manifest)
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise SegmentDamagedError(f"segment {directory}: {error}") from error


def map_segment(directory: Path, manifest: Manifest) -> Segment:
    """Open a segment whose files are known to be good. Raises OSError, ValueError."""
    return Segment(
        manifest=manifest,
        directory=directory,
        index=faiss_index.read(directory / INDEX_FILE),
        vectors=_mapped(directory / VECTORS_FILE),
        rids=_mapped(directory / RIDS_FILE),
        order=_mapped(directory / ORDER_FILE),
        lexical=open_lexical(directory / LEXICAL_FILE),
    )


def _mapped(path: Path) -> NDArray[Any]:
    """A read-only mapping as a plain array: numpy's memmap class costs 25 microseconds per look-up."""
    return np.load(path, mmap_mode="r").view(np.ndarray)  # type: ignore[no-any-return] # load() is untyped
