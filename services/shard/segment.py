"""A sealed segment: an index file, the raw vectors, the postings and the row ids, immutable on disk.

A segment is derived data. SQLite names its directory and the sha256 of its manifest; the manifest names the sha256
of every other file. Anything missing or different is a `SegmentDamagedError`, and the rows are
served from SQLite instead. A flat segment has no index file: its raw vectors are scanned.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.shard import faiss_index, files, heap
from services.shard.faiss_index.library import VERSION
from services.shard.lexical_segment import LEXICAL_FILE, LexicalSegment, open_lexical

INDEX_FILE = "index.faiss"
VECTORS_FILE = "vectors.faiss"
RIDS_FILE = "rids.npy"
ORDER_FILE = "order.npy"
MANIFEST_FILE = "manifest.json"
FLAT_FILES = (VECTORS_FILE, RIDS_FILE, ORDER_FILE, LEXICAL_FILE)
DATA_FILES = (INDEX_FILE, *FLAT_FILES)
FORMAT = 3
FLAT = "flat"
"""The index kind, and the codec, of what is searched exactly."""
VERIFY_THREADS = 4
"""Files are hashed side by side: hashlib lets other threads run meanwhile."""
HASH_BLOCK = 1 << 20


class SegmentDamagedError(Exception):
    """A segment's files are missing, cut or changed; the message names the file, `segment` the segment."""

    def __init__(self, message: str, segment: str = "") -> None:
        super().__init__(message)
        self.segment = segment


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a segment is and how it is to be searched."""

    format: int
    name: str
    rows: int
    dim: int
    factory: str
    """FAISS factory string, or FLAT."""
    codec: str
    """Codec generation: first 8 hex digits of the trained codec's sha256; FLAT without a codec."""
    faiss: str
    """Version of the library that wrote the files."""
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
    """Of every other file of the directory, by name."""
    view_rows: int = 0
    """Live rows of the view for which nprobe was chosen; 0 in segments written before it was recorded: their own."""

    @property
    def flat(self) -> bool:
        return self.factory == FLAT

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
    refined: faiss_index.RefinedIndex
    """The index, if there is one, with the raw vectors behind it."""
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

    @property
    def index(self) -> faiss_index.CandidateIndex | None:
        """None for a flat segment."""
        return self.refined.index

    @property
    def effort_max(self) -> int:
        """The effort beyond which a search finds nothing more."""
        return 1 if self.index is None else self.index.effort_max

    def positions(self, rids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Positions of those of `rids` that this segment holds, in their order."""
        found = np.searchsorted(self.rids, rids, sorter=self.order)
        inside = found < self.rows
        positions = self.order[found[inside]]
        return np.asarray(positions[self.rids[positions] == rids[inside]], dtype=np.int64)

    def holds(self, rids: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether each of `rids` is the rid of a row here, dead or alive."""
        return np.isin(rids, self.rids[self.positions(rids)])

    def codec(self) -> bytes:
        """The trained index without rows. Only for segments that have one."""
        assert self.index is not None, "a flat segment has no codec"
        return self.index.codec()

    def list_imbalance(self) -> float:
        """Mean squared list length / squared mean; 0 for a flat segment."""
        return 0.0 if self.index is None else self.index.list_imbalance()

    def bytes_on_disk(self) -> int:
        return sum((self.directory / name).stat().st_size for name in self.manifest.sha256)


def sha256_of(path: Path, pause: Callable[[], None] = lambda: None) -> str:
    """Hex sha256 of a file, with `pause` called after each MiB. Raises OSError."""
    state = hashlib.sha256()
    # Not from malloc: what a thread took there stays when the thread has ended.
    with path.open("rb", buffering=0) as file, heap.mapping(HASH_BLOCK) as block, memoryview(block) as view:
        while count := file.readinto(view):
            state.update(view[:count])
            pause()
    return state.hexdigest()


def publish(building: Path, final: Path, manifest: Manifest) -> str:
    """Make a built directory durable under its final name; returns the manifest's sha256. Raises OSError."""
    data = manifest.to_bytes()
    (building / MANIFEST_FILE).write_bytes(data)
    files.publish_directory(building, final)
    return hashlib.sha256(data).hexdigest()


def open_segment(directory: Path, manifest_sha256: str) -> Segment:
    """Open and verify a published segment. Raises SegmentDamagedError."""
    name = directory.name
    try:
        data = (directory / MANIFEST_FILE).read_bytes()
        if hashlib.sha256(data).hexdigest() != manifest_sha256:
            raise SegmentDamagedError(f"{directory / MANIFEST_FILE} differs from what was published", name)
        manifest = _parsed(data, name)
        with ThreadPoolExecutor(VERIFY_THREADS) as pool:
            for problem in pool.map(lambda entry: _problem(directory / entry[0], entry[1]), manifest.sha256.items()):
                if problem:
                    raise SegmentDamagedError(problem, name)
        return map_segment(directory, manifest)
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise SegmentDamagedError(f"segment {directory}: {error}", name) from error


def verify_vectors(segment: Segment, pause: Callable[[], None]) -> None:
    """Compare the raw vectors with their checksum once more, before they are copied. Raises SegmentDamagedError."""
    path = segment.directory / VECTORS_FILE
    try:
        problem = _problem(path, segment.manifest.sha256[VECTORS_FILE], pause)
    except OSError as error:
        problem = str(error)
    if problem:
        raise SegmentDamagedError(problem, segment.name)


def map_segment(directory: Path, manifest: Manifest) -> Segment:
    """Open a segment whose files are known to be good. Raises OSError, ValueError."""
    index = None
    if not manifest.flat:
        index = faiss_index.read(directory / INDEX_FILE, faiss_index.kind_of(manifest.factory), manifest.dim)
    raw = faiss_index.open_raw(directory / VECTORS_FILE, manifest.dim)
    if raw.rows != manifest.rows:
        raise ValueError(f"{directory / VECTORS_FILE} holds {raw.rows} rows, the manifest says {manifest.rows}")
    return Segment(
        manifest=manifest,
        directory=directory,
        refined=faiss_index.RefinedIndex(index, raw),
        vectors=raw.vectors,
        rids=_mapped(directory / RIDS_FILE),
        order=_mapped(directory / ORDER_FILE),
        lexical=open_lexical(directory / LEXICAL_FILE),
    )


def _parsed(data: bytes, name: str) -> Manifest:
    """Raises ValueError, TypeError, KeyError."""
    raw = json.loads(data)
    if raw["format"] != FORMAT:
        raise ValueError(f"manifest of format {raw['format']}; this version of Ostraka reads {FORMAT}")
    manifest = Manifest(**raw)
    if manifest.name != name:
        raise ValueError(f"it is {manifest.name}, in a directory of another name")
    if manifest.faiss.split(".")[0] != VERSION.split(".")[0]:
        raise ValueError(f"written by FAISS {manifest.faiss}; this is {VERSION}")
    wanted = FLAT_FILES if manifest.flat else DATA_FILES
    if set(manifest.sha256) != set(wanted):
        raise ValueError(f"its manifest names the files {sorted(manifest.sha256)}, not {sorted(wanted)}")
    return manifest


def _problem(path: Path, sha256: str, pause: Callable[[], None] = lambda: None) -> str:
    return "" if sha256_of(path, pause) == sha256 else f"{path} differs from its manifest"


def _mapped(path: Path) -> NDArray[Any]:
    """A read-only mapping as a plain array: numpy's memmap class costs 25 microseconds per look-up."""
    return np.load(path, mmap_mode="r").view(np.ndarray)  # type: ignore[no-any-return] # load() is untyped
