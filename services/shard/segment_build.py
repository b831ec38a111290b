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

from services.shard import faiss_index, lexical_segment, scoring, segment
from services.shard.faiss_index import DEFAULT_KIND, Kind
from services.shard.faiss_index.library import VERSION
from services.shard.lexical_segment import LexicalSource
from services.shard.segment import FLAT, Manifest

PROBE_QUERIES = 128
PROBE_NOISE = 0.4
"""Length of the noise added to a unit vector, so that a probe is near the rows without being one of them."""
CANDIDATES_MAX = 1_000
CANDIDATES_10 = (50, 100, 150, 200, 300, 400, 600, CANDIDATES_MAX)
CANDIDATES_100 = (200, 300, 400, 600, 800, CANDIDATES_MAX)
ADD_ROWS = 8_192
"""Rows encoded at once: a search waits for at most that when there is one core."""
TRAIN_ROWS_MAX = 65_536

Reader = Callable[[NDArray[np.int64]], NDArray[np.float16]]
"""Vectors float16 (n, dim) of the given rids, in their order."""
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
        settings = measure(index, vectors, plan.recall_target, pause)
    manifest = Manifest(
        format=segment.FORMAT,
        name=plan.name,
        rows=len(plan.rids),
        dim=plan.dim,
        factory=FLAT if index is None else index.factory,
        codec=codec,
        faiss=VERSION,
        trained_rows=encoding.trained_rows or (0 if index is None else _sample_rows(len(plan.rids))),
        trained_rows_basis=encoding.trained_rows_basis or (0 if index is None else len(plan.rids)),
        nprobe=settings.nprobe,
        candidates_10=settings.candidates_10,
        candidates_100=settings.candidates_100,
        recall=round(settings.recall, 4),
        sha256={name: segment.sha256_of(building / name, pause) for name in names},
    )
    return manifest, building


def _trained(plan: Plan, read: Reader) -> faiss_index.CandidateIndex:
    """An empty index with the plan's codec, or with one trained on a sample of the rows, single-threaded."""
    if plan.encoding.codec is not None:
        return faiss_index.from_codec(plan.encoding.codec)
    rows = len(plan.rids)
    chosen = np.random.default_rng(faiss_index.SEED).permutation(rows)[: _sample_rows(rows)]
    sample = read(plan.rids[np.sort(chosen)]).astype(np.float32)
    return faiss_index.train(sample, 1, plan.encoding.kind)


def _sample_rows(rows: int) -> int:
    lists = faiss_index.inverted_lists(rows)
    return min(rows, max(faiss_index.TRAIN_POINTS_PER_CENTROID_MAX * lists, TRAIN_ROWS_MAX))


@dataclass(frozen=True, slots=True)
class Settings:
    nprobe: int
    candidates_10: int
    candidates_100: int
    recall: float


EXACT = Settings(1, 0, 0, 1.0)
"""A flat segment has nothing to set."""


def measure(
    index: faiss_index.CandidateIndex, vectors: NDArray[np.float16], target: float, pause: Pause = lambda: None
) -> Settings:
    """The cheapest (nprobe, candidates) whose recall@10 against exact search reaches `target`; else all lists."""
    queries = _probes(vectors)
    bar_10, bar_100 = _bars(vectors, queries, (10, 100), pause)
    nprobe = 1
    while True:
        found = index.search(queries, min(CANDIDATES_MAX, len(vectors)), nprobe, None)
        values = _scores(vectors, queries, found)
        curve = [(c, _recall(values[:, :c], bar_10, min(10, len(vectors)))) for c in CANDIDATES_10]
        pause()
        good = [(c, recall) for c, recall in curve if recall >= target]
        if good or nprobe >= index.effort_max:
            candidates, recall = good[0] if good else curve[-1]
            depth = min(100, len(vectors))
            wide = [c for c in CANDIDATES_100 if _recall(values[:, :c], bar_100, depth) >= target]
            return Settings(nprobe, candidates, max(candidates, wide[0] if wide else CANDIDATES_MAX), recall)
        nprobe = min(nprobe * 2, index.effort_max)


def _probes(vectors: NDArray[np.float16]) -> NDArray[np.float32]:
    """Noisy unit copies of evenly spaced rows, float32 (at most PROBE_QUERIES, dim)."""
    chosen = np.unique(np.linspace(0, len(vectors) - 1, PROBE_QUERIES).astype(np.int64))
    base = vectors[chosen].astype(np.float32)
    noise = np.random.default_rng(faiss_index.SEED).standard_normal(base.shape).astype(np.float32)
    noise *= PROBE_NOISE / np.linalg.norm(noise, axis=1, keepdims=True)
    probes = base + noise
    return np.ascontiguousarray(probes / np.linalg.norm(probes, axis=1, keepdims=True))


def _bars(
    vectors: NDArray[np.float16], queries: NDArray[np.float32], depths: tuple[int, ...], pause: Pause
) -> list[NDArray[np.float32]]:
    """The exact score of the neighbour at each depth, float32 (queries,) per depth."""
    deepest = min(max(depths), len(vectors))
    best = np.empty((len(queries), 0), dtype=np.float32)
    for _, chunk in scoring.chunks(vectors):
        best = np.concatenate([best, queries @ chunk.T], axis=1)
        if best.shape[1] > deepest:
            best = np.partition(best, -deepest, axis=1)[:, -deepest:]
        pause()
    ranked = -np.sort(-best, axis=1)
    return [ranked[:, min(depth, deepest) - 1] for depth in depths]


def _scores(
    vectors: NDArray[np.float16], queries: NDArray[np.float32], found: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Exact scores float32 of the found positions (queries, n); -inf where nothing was found."""
    values = np.full(found.shape, -np.inf, dtype=np.float32)
    for row, (query, positions) in enumerate(zip(queries, found, strict=True)):
        kept = positions >= 0
        values[row, kept] = scoring.scores(vectors[positions[kept]], query)
    return values


def _recall(values: NDArray[np.float32], bar: NDArray[np.float32], depth: int) -> float:
    """Mean share of the exact top `depth` reached. By score, so that equal rows stand for one another."""
    reached = (values >= bar[:, None] - scoring.MARGIN).sum(axis=1)
    return float(np.minimum(reached, depth).mean() / depth)
