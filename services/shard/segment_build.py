"""Building a segment: copy the vectors, encode them with the codec, measure, write.

Rows stand in ascending order of their ids, so that reading them from older segments is sequential. nprobe and the
number of candidates are measured here, on the rows themselves, rather than guessed. Work is cut into chunks with a
pause between them; nothing as large as all rows is held in memory but the index itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from services.shard import faiss_index, lexical_segment, segment, tuning
from services.shard.faiss_index import DEFAULT_KIND, Kind
from services.shard.faiss_index.library import VERSION
from services.shard.lexical_segment import LexicalSource
from services.shard.segment import FLAT, Manifest

ADD_ROWS = 128
"""Rows encoded between two pauses. Of 8,192 it was 60 to 190 ms with 384 dimensions on one of the cores
that search. Codes are the same; in pieces of 256 they cost half as much again as in whole, which lengthens builds, not
searches."""
TRAIN_ROWS_MAX = 65_536

Reader = Callable[[NDArray[np.int64]], NDArray[np.float16]]
"""Vectors float16 (n, dim) of the given rids, in their order."""
EXACT = tuning.Settings(1, 0, 0, 1.0)
"""A flat segment has nothing to set."""

Pause = Callable[[], None]
"""Called between chunks of work; may raise to end it."""


@dataclass(frozen=True, slots=True)
class Encoding:
    """Where the index of a segment comes from: a codec, training (`codec` None), or none at all (`flat`)."""

    flat: bool = False
    codec: bytes | None = None
    trained_rows: int = 0
    trained_rows_basis: int = 0
    kind: Kind = DEFAULT_KIND
    """What is trained, when something is."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to build."""

    name: str
    rids: NDArray[np.int64]
    dim: int
    encoding: Encoding
    recall_target: float
    analyzer: str = ""
    """Whose terms `lexical` holds."""
    lexical: tuple[LexicalSource, ...] | None = None
    """Where the postings of the rows come from; None: rows without words."""
    surroundings: tuning.Surroundings | None = None
    """The rest of the view; None: there are no other rows."""
    rows_around: int = 0
    """Rows in it."""


def build(plan: Plan, read: Reader, segments_dir: Path, pause: Pause = lambda: None) -> tuple[Manifest, Path]:
    """Write all files of a segment into a `.tmp` directory and return its manifest and that directory.

    Raises OSError when the disk is full and what `pause` raises; the caller removes the directory then.
    """
    faiss_index.use_one_thread()
    building = segments_dir / f"{plan.name}.tmp"
    building.mkdir(parents=True, exist_ok=True)
    encoding = plan.encoding
    index = None if encoding.flat else _trained(plan, read)
    codec = FLAT if index is None else faiss_index.codec_id(encoding.codec or index.codec())
    with faiss_index.RawWriter(building / segment.VECTORS_FILE, plan.dim) as raw:
        for start in range(0, len(plan.rids), ADD_ROWS):
            vectors = read(plan.rids[start : start + ADD_ROWS])
            raw.append(vectors)
            if index is not None:
                index.add(vectors.astype(np.float32))
            pause()
    np.save(building / segment.RIDS_FILE, plan.rids)
    np.save(building / segment.ORDER_FILE, np.argsort(plan.rids, kind="stable").astype(np.int64))
    wordless = LexicalSource((), np.zeros(len(plan.rids), dtype=np.uint32), plan.rids)
    sources = (wordless,) if plan.lexical is None else plan.lexical
    lexical_segment.write(building / lexical_segment.LEXICAL_FILE, plan.rids, sources, plan.analyzer, pause)
    settings = EXACT
    names: tuple[str, ...] = segment.FLAT_FILES
    if index is not None:
        names = segment.DATA_FILES
        index.write(building / segment.INDEX_FILE)
        vectors = faiss_index.open_raw(building / segment.VECTORS_FILE, plan.dim).vectors
        settings = tuning.measure(index, vectors, plan.recall_target, pause, plan.surroundings)
    manifest = Manifest(
        format=segment.FORMAT,
        name=plan.name,
        rows=len(plan.rids),
        dim=plan.dim,
        factory=FLAT if index is None else index.factory,
        codec=codec,
        faiss=VERSION,
        trained_rows=encoding.trained_rows or (0 if index is None else _sample_rows(len(plan.rids), plan.dim)),
        trained_rows_basis=encoding.trained_rows_basis or (0 if index is None else len(plan.rids)),
        nprobe=settings.nprobe,
        candidates_10=settings.candidates_10,
        candidates_100=settings.candidates_100,
        recall=round(settings.recall, 4),
        view_rows=len(plan.rids) + plan.rows_around,
        sha256={name: segment.sha256_of(building / name, pause) for name in names},
    )
    return manifest, building


def _trained(plan: Plan, read: Reader) -> faiss_index.CandidateIndex:
    """An empty index with the plan's codec, or with one trained on a sample of the rows, single-threaded."""
    if plan.encoding.codec is not None:
        return faiss_index.from_codec(plan.encoding.codec)
    rows = len(plan.rids)
    chosen = np.random.default_rng(faiss_index.SEED).permutation(rows)[: _sample_rows(rows, plan.dim)]
    sample = read(plan.rids[np.sort(chosen)]).astype(np.float32)
    return faiss_index.train(sample, 1, plan.encoding.kind)


def _sample_rows(rows: int, dim: int) -> int:
    lists = faiss_index.inverted_lists(rows, dim)
    return min(rows, max(faiss_index.TRAIN_POINTS_PER_CENTROID_MAX * lists, TRAIN_ROWS_MAX))
