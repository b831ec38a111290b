"""Building a segment: order, train or reuse the codec, add, measure, write.

Rows stand in the order of a keyed hash of their document and ordinal, and the codec is trained on the first of them,
so equal sets of rows give equal segments on every replica. nprobe and the number of candidates are measured here, on
the rows themselves, rather than guessed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from services.shard import faiss_index, lexical_segment, scoring, segment
from services.shard.lexical_segment import LexicalSource
from services.shard.segment import Manifest

PROBE_QUERIES = 128
PROBE_NOISE = 0.4
"""Length of the noise added to a unit vector, so that a probe is near the rows without being one of them."""
CANDIDATES_MAX = 1_000
CANDIDATES_10 = (50, 100, 150, 200, 300, 400, 600, CANDIDATES_MAX)
CANDIDATES_100 = (200, 300, 400, 600, 800, CANDIDATES_MAX)
ADD_ROWS = 8_192


Reader = Callable[[NDArray[np.int64]], NDArray[np.float16]]
"""Vectors float16 (n, dim) of the given rids, in their order."""


def position_key(document_id: str, ordinal: int) -> bytes:
    """The hash by which rows are ordered within a segment."""
    return hashlib.blake2b(f"{document_id}#{ordinal}".encode(), digest_size=8, key=b"ostraka-order-1").digest()


def in_order(rids: Sequence[int], keys: Sequence[bytes]) -> NDArray[np.int64]:
    """`rids` sorted by their position keys."""
    ranked = np.argsort(np.array(keys, dtype="S8"), kind="stable")
    return np.asarray(rids, dtype=np.int64)[ranked]


@dataclass(frozen=True, slots=True)
class Plan:
    """What to build: `codec` None trains a new one."""

    name: str
    rids: NDArray[np.int64]
    dim: int
    codec: bytes | None
    trained_rows: int
    trained_rows_basis: int
    recall_target: float
    threads: int
    analyzer: str = ""
    """Whose terms `lexical` holds."""
    lexical: tuple[LexicalSource, ...] | None = None
    """Where the postings of the rows come from; None: rows without words."""


def build(plan: Plan, read: Reader, segments_dir: Path) -> tuple[Manifest, Path]:
    """Write all files of a segment into a `.tmp` directory and return its manifest and that directory.

    Raises OSError when the disk is full; the caller removes the directory then.
    """
    building = segments_dir / f"{plan.name}.tmp"
    building.mkdir(parents=True, exist_ok=True)
    vectors = _write_vectors(plan, read, building / segment.VECTORS_FILE)
    np.save(building / segment.RIDS_FILE, plan.rids)
    np.save(building / segment.ORDER_FILE, np.argsort(plan.rids, kind="stable").astype(np.int64))
    wordless = LexicalSource((), np.zeros(len(plan.rids), dtype=np.uint32), plan.rids)
    sources = (wordless,) if plan.lexical is None else plan.lexical
    lexical_segment.write(building / lexical_segment.LEXICAL_FILE, plan.rids, sources, plan.analyzer)
    trained_rows, basis = plan.trained_rows, plan.trained_rows_basis
    if plan.codec is None:
        basis = len(plan.rids)
        lists = faiss_index.inverted_lists(basis)
        trained_rows = min(basis, max(faiss_index.TRAIN_POINTS_PER_CENTROID_MAX * lists, 65_536))
        index = faiss_index.train(vectors[:trained_rows].astype(np.float32), plan.threads)
        codec = index.codec()
    else:
        codec = plan.codec
        index = faiss_index.from_codec(codec)
    for start in range(0, len(vectors), ADD_ROWS):
        index.add(vectors[start : start + ADD_ROWS].astype(np.float32))
    index.write(building / segment.INDEX_FILE)
    (building / segment.CODEC_FILE).write_bytes(codec)
    settings = measure(index, vectors, plan.recall_target)
    manifest = Manifest(
        format=segment.FORMAT,
        name=plan.name,
        rows=len(vectors),
        dim=plan.dim,
        factory=index.factory,
        codec=faiss_index.codec_id(codec),
        trained_rows=trained_rows,
        trained_rows_basis=basis,
        nprobe=settings.nprobe,
        candidates_10=settings.candidates_10,
        candidates_100=settings.candidates_100,
        recall=round(settings.recall, 4),
        sha256={name: segment.sha256_of(building / name) for name in segment.DATA_FILES},
    )
    return manifest, building


def _write_vectors(plan: Plan, read: Reader, path: Path) -> NDArray[np.float16]:
    shape = (len(plan.rids), plan.dim)
    vectors = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=shape)
    for start in range(0, len(plan.rids), ADD_ROWS):
        vectors[start : start + ADD_ROWS] = read(plan.rids[start : start + ADD_ROWS])
    vectors.flush()
    return vectors


@dataclass(frozen=True, slots=True)
class Settings:
    nprobe: int
    candidates_10: int
    candidates_100: int
    recall: float


def measure(index: faiss_index.InvertedFile, vectors: NDArray[np.float16], target: float) -> Settings:
    """The cheapest (nprobe, candidates) whose recall@10 against exact search reaches `target`; else all lists."""
    queries = _probes(vectors)
    bar_10, bar_100 = _bars(vectors, queries, (10, 100))
    nprobe = 1
    while True:
        found = index.search(queries, min(CANDIDATES_MAX, len(vectors)), nprobe, None)
        values = _scores(vectors, queries, found)
        curve = [(c, _recall(values[:, :c], bar_10, min(10, len(vectors)))) for c in CANDIDATES_10]
        good = [(c, recall) for c, recall in curve if recall >= target]
        if good or nprobe >= index.lists:
            candidates, recall = good[0] if good else curve[-1]
            depth = min(100, len(vectors))
            wide = [c for c in CANDIDATES_100 if _recall(values[:, :c], bar_100, depth) >= target]
            return Settings(nprobe, candidates, max(candidates, wide[0] if wide else CANDIDATES_MAX), recall)
        nprobe = min(nprobe * 2, index.lists)


def _probes(vectors: NDArray[np.float16]) -> NDArray[np.float32]:
    """Noisy unit copies of evenly spaced rows, float32 (at most PROBE_QUERIES, dim)."""
    chosen = np.unique(np.linspace(0, len(vectors) - 1, PROBE_QUERIES).astype(np.int64))
    base = vectors[chosen].astype(np.float32)
    noise = np.random.default_rng(faiss_index.SEED).standard_normal(base.shape).astype(np.float32)
    noise *= PROBE_NOISE / np.linalg.norm(noise, axis=1, keepdims=True)
    probes = base + noise
    return np.ascontiguousarray(probes / np.linalg.norm(probes, axis=1, keepdims=True))


def _bars(
    vectors: NDArray[np.float16], queries: NDArray[np.float32], depths: tuple[int, ...]
) -> list[NDArray[np.float32]]:
    """The exact score of the neighbour at each depth, float32 (queries,) per depth."""
    deepest = min(max(depths), len(vectors))
    best = np.empty((len(queries), 0), dtype=np.float32)
    for _, chunk in scoring.chunks(vectors):
        best = np.concatenate([best, queries @ chunk.T], axis=1)
        if best.shape[1] > deepest:
            best = np.partition(best, -deepest, axis=1)[:, -deepest:]
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
