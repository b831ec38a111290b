"""How fast the engine's search of one segment is beside bare FAISS over the same index and raw vectors.

In one thread: medians of interleaved rounds beside FAISS's `IndexRefine` with the same settings, with the fastest
settings of a small grid that reach the engine's recall and 0.99 (found with the very queries that are measured, which
favours FAISS), with a tenth of the lists and as many candidates as reach 0.99 then, or else 20,000, and beside an
inverted file of raw vectors and, if asked for, HNSW32, at the engine's recall.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from services.shard import faiss_index, scoring, view_search
from services.shard.faiss_index.library import Floats, faiss, threads
from services.shard.view import View

K = 10
RECALL_MIN = 0.99
SCANNED_MAX = 0.1
CANDIDATES_MAX = 20_000
TRAIN_THREADS = 2
RATIO_WANTED = 0.6
BATCHES = (1, 32)
ROUNDS = 15
GRID_ROUNDS = 3
SHORTLIST = 6
EFFORT_FACTORS = (0.35, 0.5, 0.6, 0.7, 0.85, 1.0, 1.2, 1.5, 2.0)
CANDIDATE_FACTORS = (0.2, 0.3, 0.4, 0.5, 0.7, 0.85, 1.0, 1.3, 2.0)
CANDIDATES_LIMITED = (5, 10, 15, 20, 30, 50, 100, 200, 500, 2_000)

Vectors = NDArray[np.float16]
Ask = Callable[[Floats], object]


@dataclass(frozen=True, slots=True)
class Contestant:
    """Something that answers a batch of queries."""

    name: str
    recall: float
    ask: Ask
    batches: tuple[int, ...] = BATCHES


@dataclass(frozen=True, slots=True)
class Speed:
    """One contestant in batches of one size."""

    data: str
    name: str
    batch: int
    recall: float
    us_per_query: float
    ratio: float
    """The engine's speed over its speed."""


def speeds(
    data: str, view: View, pool: Vectors, queries: Floats, recall_here: float, asked: tuple[int, int], *, others: bool
) -> list[Speed]:
    """Of a view with one segment whose positions are its rids, the rows of `pool` (rows, dim).

    `recall_here`: of the view; `asked`: effort and candidates of its searches.
    """
    part = view.parts[0]
    index, best = part.segment.index, faiss_index.nearest_batch(queries, pool, K)[0]
    assert index is not None, "the segment has an index"

    def recall(ask: Callable[[Floats], NDArray[np.int64]]) -> float:
        answers = ask(queries)
        return float(
            np.mean([recall_of(pool, q, a[a >= 0], b) for q, a, b in zip(queries, answers, best, strict=True)])
        )

    refine = faiss.IndexRefine(index.base(), part.segment.refined.raw.index)

    def bare(effort: int, candidates: int) -> Callable[[Floats], NDArray[np.int64]]:
        inner = faiss.SearchParametersIVF(nprobe=effort)
        settings = faiss.IndexRefineSearchParameters(k_factor=(candidates + 0.5) / K, base_index_params=inner)
        return lambda lines: refine.search(lines, K, params=settings)[1]

    effort, candidates = asked
    same = bare(effort, candidates)
    contestants = [
        Contestant("engine", recall_here, lambda lines: view_search.search(view, lines, K, exact=False)),
        Contestant(f"FAISS, the same (nprobe {effort}, {candidates})", recall(same), same),
    ]
    grid = []
    for tried in _scaled(effort, EFFORT_FACTORS, index.lists):
        for count in _scaled(candidates, CANDIDATE_FACTORS, part.segment.rows, least=K):
            ask = bare(tried, count)
            grid.append(Contestant(f"nprobe {tried}, {count}", recall(ask), ask))
    for goal, what in ((recall_here, "the engine's recall"), (RECALL_MIN, f"recall {RECALL_MIN}")):
        for batch in BATCHES:
            good = [each for each in grid if each.recall >= goal - 1e-9]
            chosen = _fastest(good, queries, batch)
            if chosen is not None:
                name = f"FAISS, fastest at {what} ({chosen.name})"
                contestants.append(replace(chosen, name=name, batches=(batch,)))
    limited = int(SCANNED_MAX * index.lists)
    for count in _scaled(K, CANDIDATES_LIMITED, min(CANDIDATES_MAX, part.segment.rows)):
        ask = bare(limited, count)
        within = Contestant(f"FAISS, {SCANNED_MAX:.0%} of the lists (nprobe {limited}, {count})", recall(ask), ask)
        if within.recall >= RECALL_MIN:
            break
    contestants.append(within)  # with the most candidates where nothing reaches it
    contestants += _others(pool, index, effort, recall_here, recall, hnsw=others)
    return _raced(data, contestants, queries)


def _others(
    pool: Vectors,
    index: faiss_index.CandidateIndex,
    effort: int,
    goal: float,
    recall: Callable[[Callable[[Floats], NDArray[np.int64]]], float],
    *,
    hnsw: bool,
) -> Iterator[Contestant]:
    """Other kinds of index over float32 rows, with the least effort that reaches the goal."""
    rows = pool.astype(np.float32)
    flat = faiss.IndexIVFFlat(index.base().quantizer, rows.shape[1], index.lists, faiss.METRIC_INNER_PRODUCT)
    flat.add(rows)
    for nprobe in _scaled(effort, np.geomspace(0.25, 4, 24).tolist(), index.lists):
        ask = _with(flat, faiss.SearchParametersIVF(nprobe=nprobe))
        if (reached := recall(ask)) >= goal - 1e-9:
            yield Contestant(f"IVF-Flat, float32 (nprobe {nprobe})", reached, ask)
            break
    if not hnsw:
        return
    graph = faiss.IndexHNSWFlat(rows.shape[1], 32, faiss.METRIC_INNER_PRODUCT)
    began = time.perf_counter()
    with threads(TRAIN_THREADS):
        graph.add(rows)
    print(f"HNSW32 built in {time.perf_counter() - began:.0f} s", flush=True)
    for width in np.geomspace(16, 4_096, 33).astype(int).tolist():
        ask = _with(graph, faiss.SearchParametersHNSW(efSearch=width))
        if (reached := recall(ask)) >= goal - 1e-9:
            yield Contestant(f"HNSW32, float32 (efSearch {width})", reached, ask)
            break


def _scaled(value: int, factors: Sequence[float], most: int, least: int = 1) -> list[int]:
    return sorted({min(most, max(least, round(value * factor))) for factor in factors})


def _fastest(contestants: Sequence[Contestant], queries: Floats, batch: int) -> Contestant | None:
    """After one round those that may be; after some more the one that is."""
    once = {each.name: _timed(each.ask, queries, batch) for each in contestants}
    short = sorted(contestants, key=lambda each: once[each.name])[:SHORTLIST]
    times = {each.name: [_timed(each.ask, queries, batch) for _ in range(GRID_ROUNDS)] for each in short}
    return min(short, key=lambda each: float(np.median(times[each.name])), default=None)


def _raced(data: str, contestants: Sequence[Contestant], queries: Floats) -> list[Speed]:
    """Interleaved rounds, each beginning with another contestant."""
    speeds = []
    for batch in BATCHES:
        here = [each for each in contestants if batch in each.batches]
        times = np.empty((ROUNDS, len(here)))
        for each in here:
            each.ask(queries[:batch])
        for number in range(ROUNDS):
            for place in np.roll(np.arange(len(here)), number).tolist():
                times[number, place] = _timed(here[place].ask, queries, batch)
        medians = np.median(times, axis=0)
        speeds += [
            Speed(data, each.name, batch, each.recall, float(median), float(median / medians[0]))
            for each, median in zip(here, medians, strict=True)
        ]
    return speeds


def _timed(ask: Ask, queries: Floats, batch: int) -> float:
    """Microseconds per query."""
    blocks = [np.ascontiguousarray(queries[start : start + batch]) for start in range(0, len(queries), batch)]
    began = time.perf_counter()
    for block in blocks:
        ask(block)
    return (time.perf_counter() - began) / len(queries) * 1e6


def recall_of(pool: Vectors, query: Floats, rids: NDArray[np.int64], best: Floats) -> float:
    """By score, so that equal rows stand for one another."""
    assert len(set(rids.tolist())) == len(rids), "no row is found twice"
    values = scoring.scores(pool[rids], query)
    return float((values >= best[-1] - scoring.MARGIN).sum()) / len(best)


def print_speeds(speeds: Sequence[Speed]) -> None:
    print(f"\n{'':>8} {'batch':>6} {'recall@10':>10} {'us/query':>9} {'engine/it':>10}  (wanted: {RATIO_WANTED})")
    for each in speeds:
        print(
            f"{each.data:>8} {each.batch:>6} {each.recall:>10.4f} {each.us_per_query:>9.1f} {each.ratio:>10.2f}  "
            f"{each.name}"
        )


def _with(index: object, settings: object) -> Callable[[Floats], NDArray[np.int64]]:
    return lambda lines: index.search(lines, K, params=settings)[1]  # type: ignore[attr-defined]
