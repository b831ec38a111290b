"""How hard to look: effort (nprobe, efSearch) and candidates for a recall target, measured on the rows themselves.

Two families of probes stand for live queries, and both must reach the target. Rows asked for their neighbours other
than themselves are queries of the rows' own distribution, whatever it has shifted to; noisy copies lie off it, as
questions lie off passages. A sample of probes that just reaches the target says little about other queries, so the
mean less MARGIN_ERRORS standard errors must reach it, of the family that does worse: with 128 probes some 0.006 at a
recall of 0.99. With one of them, 500 other queries of 25,612 passages found 0.989. Everything is deterministic: equal
views give equal settings.

A segment is one of several parts of a view, and a search wants the best of them all. So of a probe's neighbours in the
segment those count that are among the ten best of the whole view: of 8,000 rows beside 50,000 like them hardly more
than one for each probe, and it lies as near as the ten best of all, for which the effort of the large part suffices.
Where rows lie apart from all others, all ten of a probe count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.shard import faiss_index, scoring
from services.shard.faiss_index import CandidateIndex, Kind

AS_SURE = 0.001
"""A recall that much below the best of its share is as good and may be cheaper."""
PROBES = 128
"""Of each family."""
PROBE_NOISE = 0.4
"""Length of the noise added to a unit vector."""
MARGIN_ERRORS = 2.0
SCANNED_MAX = 0.1
"""Share of the rows whose codes a search may read, where the target can be reached with it."""
TRUTH_DEPTH = 128
"""Exact neighbours known of each probe: 100, and some that tie with the last."""
CANDIDATES_MAX = 20_000
CANDIDATES_LEAST = 20
CANDIDATES_STEP = 1.3
EFFORT_STEP = 1.5
EFFORT_GRAPH_LEAST, EFFORT_GRAPH_MAX = 16, 4_096
BETTER_STEPS = 3
"""Efforts tried beyond the first that suffices: more lists with fewer candidates may cost less."""
BLOCK = 32
"""Probes searched at once: 20,000 candidates of each are 5 MiB."""
AROUND = 16
"""Probes searched for in the rest of the view between two pauses."""
SCAN_NS, SCAN_BYTE_NS, CANDIDATE_NS, CANDIDATE_DIM_NS = 3.0, 0.3, 250.0, 0.4
"""Measured once with FastScan codes of 400,000 x 50 rows; only their ratio matters."""

Pause = Callable[[], None]
Vectors = NDArray[np.float16]


@dataclass(frozen=True, slots=True)
class Settings:
    """Chosen by measurement."""

    nprobe: int
    """Or efSearch."""
    candidates_10: int
    candidates_100: int
    recall: float
    """Recall@10 measured, the lower of both families."""


@dataclass(frozen=True, slots=True)
class Point:
    """One (effort, candidates) of the curve."""

    effort: int
    candidates: int
    recall: float
    """Mean recall@10, the lower of both families."""
    recall_both: float
    """Of both families together: twice as many probes, the mean is nearer to that of all queries."""
    recall_sure: float
    """The same less MARGIN_ERRORS standard errors; the target is held against this."""
    recall_100: float
    scanned: float
    """Share of the rows whose codes are read."""
    cost_ns: float
    """Of a query, by the model."""


@dataclass(frozen=True, slots=True)
class Probes:
    """Queries with their exact neighbours."""

    queries: NDArray[np.float32]
    """(n, dim), rows first and noisy copies after them."""
    family: NDArray[np.int64]
    """(n,), 0 and 1."""
    neighbours: NDArray[np.int64]
    """(n, depth) positions, best first, the probe's own row left out of the first family."""
    scores: NDArray[np.float32]
    least: NDArray[np.float32]
    """(n, 1), score of the tenth best row of the whole view."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """The rest of the view in which a segment will stand."""

    best: Callable[[NDArray[np.float32]], NDArray[np.float32]]
    """Scores (n, 10) of the best rows there for queries (n, dim), -inf where there are fewer."""
    effort: int = 0
    """What suffices for the largest part with the same codec, to be tried first; 0: nothing is known."""


def measure(
    index: CandidateIndex,
    vectors: Vectors,
    target: float,
    pause: Pause = lambda: None,
    surroundings: Surroundings | None = None,
) -> Settings:
    """The cheapest settings whose recall@10 surely reaches `target`; else the best there are.

    `pause` is called between pieces of work and may raise to abandon it. `surroundings` None: there are no other rows.
    """
    if index.kind is Kind.FLAT or len(vectors) < 2:
        return Settings(1, min(10, len(vectors)), min(100, len(vectors)), 1.0)
    found = probes(vectors, pause, surroundings)
    points: list[Point] = []
    known = 0 if surroundings is None else min(surroundings.effort, index.effort_max)
    if known:
        points += at_effort(index, found, known, pause)
        pause()
        if any(point.recall_sure >= target for point in points):
            return settings_of(points, target)
    sufficed = 0
    for effort in efforts(index):
        if effort <= known:
            continue
        points += at_effort(index, found, effort, pause)
        pause()
        sufficed += any(point.recall_sure >= target for point in points)
        if sufficed > BETTER_STEPS:
            break
    return settings_of(points, target)


def curve(index: CandidateIndex, found: Probes) -> Iterator[list[Point]]:
    """The whole curve, the points of one effort at a time."""
    for effort in efforts(index):
        yield at_effort(index, found, effort)


def choose(points: Sequence[Point], target: float) -> Point:
    """The cheapest point that surely reaches the target and scans at most SCANNED_MAX of the rows; else the surest of
    that share, if all probes together reach it; else the cheapest that surely does; else the one with the best recall.
    Pure."""
    modest = [point for point in points if point.scanned <= SCANNED_MAX]
    most = max((point.recall_sure for point in modest), default=0.0) - AS_SURE
    for good in (
        [point for point in modest if point.recall_sure >= target],
        [point for point in modest if point.recall_both >= target and point.recall_sure >= most],
        [point for point in points if point.recall_sure >= target],
    ):
        if good:
            return min(good, key=lambda point: (point.cost_ns, point.effort, point.candidates))
    return max(points, key=lambda point: (point.recall_sure, point.recall, -point.cost_ns))


def settings_of(points: Sequence[Point], target: float) -> Settings:
    """The chosen point, and the candidates that its effort needs for 100 neighbours. Pure."""
    best = choose(points, target)
    same = sorted((p for p in points if p.effort == best.effort), key=lambda p: p.candidates)
    wide = next((p.candidates for p in same if p.recall_100 >= target), same[-1].candidates)
    return Settings(best.effort, best.candidates, max(best.candidates, wide), best.recall)


def efforts(index: CandidateIndex) -> Iterator[int]:
    """Ever greater efforts, at most some thirty."""
    graph = index.kind is Kind.HNSW
    effort = EFFORT_GRAPH_LEAST if graph else 1
    most = min(EFFORT_GRAPH_MAX, index.effort_max) if graph else index.effort_max
    border = 0 if graph else int(index.lists * SCANNED_MAX)
    while effort < most:
        yield effort
        following = max(effort + 1, int(effort * EFFORT_STEP))
        effort = border if effort < border < following else following
    yield most


def probes(vectors: Vectors, pause: Pause = lambda: None, surroundings: Surroundings | None = None) -> Probes:
    """Evenly spaced rows, and noisy unit copies of others, with exact neighbours by BLAS."""
    count = min(PROBES, len(vectors))
    places = np.linspace(0, len(vectors) - 1, 2 * count).astype(np.int64)
    own = vectors[places[::2]].astype(np.float32)
    noise = np.random.default_rng(faiss_index.SEED).standard_normal(own.shape).astype(np.float32)
    noise *= PROBE_NOISE / np.linalg.norm(noise, axis=1, keepdims=True)
    noisy = vectors[places[1::2]].astype(np.float32) + noise
    noisy /= np.maximum(np.linalg.norm(noisy, axis=1, keepdims=True), np.float32(1e-12))
    queries = np.ascontiguousarray(np.concatenate([own, noisy]))
    pause()
    scores, found = faiss_index.nearest_batch(queries, vectors, TRUTH_DEPTH + 1, pause=pause)
    itself = np.zeros(found.shape, dtype=np.bool_)
    itself[:count] = found[:count] == places[::2, None]
    order = np.argsort(itself, axis=1, kind="stable")[:, : found.shape[1] - 1]
    scores = np.take_along_axis(scores, order, axis=1)
    ten = scores[:, :10]
    if surroundings is not None:
        pause()
        around = np.empty((0, 10), dtype=np.float32)
        for start in range(0, len(queries), AROUND):
            around = np.concatenate([around, surroundings.best(queries[start : start + AROUND])])
            pause()
        ten = -np.sort(-np.concatenate([ten, around], axis=1), axis=1)[:, :10]
    return Probes(
        queries,
        np.repeat(np.array([0, 1]), count),
        np.take_along_axis(found, order, axis=1),
        scores,
        np.ascontiguousarray(ten[:, -1:]),
    )


def at_effort(index: CandidateIndex, found: Probes, effort: int, pause: Pause = lambda: None) -> list[Point]:
    """Every number of candidates at one effort, from one search: the rank of each neighbour among the candidates."""
    share = min(1.0, effort / index.lists) if index.kind.inverted else min(1.0, 16.0 * effort / index.rows)
    depth = effort if index.kind is Kind.HNSW else max(1_000, int(share * index.rows / 4))
    depth = min(depth, CANDIDATES_MAX, index.rows)
    ranks = _ranks(index, found, effort, depth, pause)
    ten, hundred = min(10, found.neighbours.shape[1]), min(100, found.neighbours.shape[1])
    points = []
    good = found.scores >= np.maximum(found.scores[:, ten - 1 : ten], found.least) - scoring.MARGIN
    wanted = np.minimum(good.sum(axis=1), ten)
    scanned_ns = share * index.rows * (SCAN_NS + SCAN_BYTE_NS * index.bytes_per_row)
    for candidates in numbers(depth):
        reached = np.minimum((good & (ranks < candidates)).sum(axis=1), wanted)
        families = [_recall(reached[each], wanted[each], ten) for each in (found.family == 0, found.family == 1)]
        points.append(
            Point(
                effort=effort,
                candidates=candidates,
                recall=min(recall for recall, _ in families),
                recall_both=_recall(reached, wanted, ten)[0],
                recall_sure=min(recall - MARGIN_ERRORS * error for recall, error in families),
                recall_100=float(_recalls(ranks, found.scores, hundred, candidates).mean()),
                scanned=share,
                cost_ns=scanned_ns + candidates * (CANDIDATE_NS + CANDIDATE_DIM_NS * index.dim),
            )
        )
    return points


def numbers(most: int) -> list[int]:
    """Numbers of candidates to consider, ascending, `most` the last. Pure."""
    found, count = [], CANDIDATES_LEAST
    while count < most:
        found.append(count)
        count = max(count + 1, int(count * CANDIDATES_STEP))
    return [*found, most]


def _ranks(index: CandidateIndex, found: Probes, effort: int, depth: int, pause: Pause) -> NDArray[np.int64]:
    """Rank of each exact neighbour among the candidates (n, neighbours); `depth` where it is not among them."""
    ranks = np.full(found.neighbours.shape, depth, dtype=np.int64)
    for start in range(0, len(found.queries), BLOCK):
        block = index.search(found.queries[start : start + BLOCK], depth, effort, None)
        for row, candidates in enumerate(block, start):
            neighbours = found.neighbours[row]
            order = np.argsort(neighbours)
            places = np.searchsorted(neighbours, candidates, sorter=order).clip(max=len(order) - 1)
            hits = np.flatnonzero(neighbours[order[places]] == candidates)
            ranks[row, order[places[hits]]] = hits
        pause()
    return ranks


def _recall(reached: NDArray[np.int64], wanted: NDArray[np.int64], ten: int) -> tuple[float, float]:
    """Share of the wanted neighbours that were reached, and its standard error, of a ratio of sums.

    The error counts by the share that these neighbours have in the ten best: elsewhere others are measured.
    """
    total = int(wanted.sum())
    if not total:
        return 1.0, 0.0
    recall = int(reached.sum()) / total
    error = float(np.sqrt(np.square(reached - recall * wanted).sum())) / total
    return recall, error * total / (ten * len(wanted))


def _recalls(ranks: NDArray[np.int64], scores: NDArray[np.float32], depth: int, candidates: int) -> NDArray[np.float64]:
    """Recall at `depth` of each probe. By score, so that equal rows stand for one another."""
    good = scores >= scores[:, depth - 1 : depth] - scoring.MARGIN
    reached = (good & (ranks < candidates)).sum(axis=1)
    return np.asarray(np.minimum(reached, depth) / depth, dtype=np.float64)
