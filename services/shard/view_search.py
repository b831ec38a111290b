"""Searching one view: exact delta, candidates from each segment re-ranked in C++, exact scores for the best of all.

The result of one query is every row that can be among its best k, by score; documents and payloads are fetched
afterwards, for the best rows only, because the view knows nothing but row ids. FAISS's scores of raw vectors are exact
but for rounding, so they choose; `scoring.scores` gives the scores that everybody sees.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from services.shard import alive as bits
from services.shard import faiss_index, scoring
from services.shard.segment import FLAT
from services.shard.view import Part, View

DELTA = "delta"
TIE_SLACK = 8
"""Extra rows asked of each part, to see whether a tie crosses the k-th place."""
SCAN_LIVE_MAX = 2_048
"""A part with no more live rows is scanned exactly: that is as fast as a search of its index, and misses nothing."""
SCAN_SHARE = 32
"""So is one of which no more than 1 / SCAN_SHARE is alive, up to SCAN_SHARED_MAX rows: its neighbours are far apart."""
SCAN_SHARED_MAX = 32_768
WIDEN_MAX = 4.0
"""Live rows thin out by f, so neighbours lie in more lists: sqrt(f) times as many are looked at, at most this."""

Found: TypeAlias = tuple[NDArray[np.float32], NDArray[np.int64]]
"""(scores, positions), both (queries, n), in no order; -inf and -1 where nothing was found."""


@dataclass(frozen=True, slots=True)
class Candidates:
    """The rows of one query that can be in its result: scores descending, ties of the k-th included."""

    scores: NDArray[np.float32]
    rids: NDArray[np.int64]
    parts: NDArray[np.int16]
    """Index into `part_names(view)`."""


def part_names(view: View) -> list[tuple[str, str]]:
    """(index part, index kind) of the delta and of each segment, as named in provenance."""
    return [(DELTA, FLAT), *((part.segment.name, part.segment.manifest.factory) for part in view.parts)]


def search(view: View, queries: NDArray[np.float32], k: int, *, exact: bool) -> list[Candidates]:
    """Candidates for each of the unit queries (n, dim), at least min(k, rows live) of them each."""
    found = (
        [] if exact else [(n, _segment(part, queries, k)) for n, part in enumerate(view.parts, start=1) if part.live]
    )
    if exact:
        return [_merge(view, query, _exact_positions(view, query, k), k) for query in queries]
    chosen: list[list[NDArray[np.int64]]] = []
    for row, query in enumerate(queries):
        positions = [np.empty(0, dtype=np.int64)] * (1 + len(view.parts))
        positions[0] = _delta_positions(view, query, k)
        for number, (scores, at) in found:
            positions[number] = _untied(view.parts[number - 1], query, scores[row], at[row], k)
        chosen.append(positions)
    return [_merge(view, query, positions, k) for query, positions in zip(queries, chosen, strict=True)]


def _merge(view: View, query: NDArray[np.float32], found: list[NDArray[np.int64]], k: int) -> Candidates:
    rows: list[NDArray[np.float32]] = []
    rids: list[NDArray[np.int64]] = []
    numbers: list[NDArray[np.int16]] = []
    for number, positions in enumerate(found):
        if not len(positions):
            continue
        source = view.delta if number == 0 else view.parts[number - 1].segment
        rows.append(source.vectors[positions].astype(np.float32, copy=False))
        rids.append(source.rids[positions])
        numbers.append(np.full(len(positions), number, dtype=np.int16))
    if not rows:
        return Candidates(np.empty(0, np.float32), np.empty(0, np.int64), np.empty(0, np.int16))
    if len(rows) == 1:
        return _best(scoring.scores(rows[0], query), rids[0], numbers[0], k)
    return _best(scoring.scores(np.concatenate(rows), query), np.concatenate(rids), np.concatenate(numbers), k)


def _best(scores: NDArray[np.float32], rids: NDArray[np.int64], parts: NDArray[np.int16], k: int) -> Candidates:
    if len(scores) > k:
        kept = scores >= np.partition(scores, -k)[-k]
        scores, rids, parts = scores[kept], rids[kept], parts[kept]
    ranked = np.argsort(-scores, kind="stable")
    return Candidates(scores[ranked], np.asarray(rids[ranked], dtype=np.int64), parts[ranked])


def _exact_positions(view: View, query: NDArray[np.float32], k: int) -> list[NDArray[np.int64]]:
    """Of the delta and of each part: a superset of what can be among the best `k`."""
    delta = view.delta
    found = [scoring.exhaustive(delta.vectors, bits.to_mask(delta.alive, delta.length), query, k)]
    for part in view.parts:
        mask = bits.to_mask(part.alive, part.segment.rows)
        found.append(scoring.exhaustive(part.segment.vectors, mask, query, k))
    return found


def _delta_positions(view: View, query: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    delta = view.delta
    if not delta.live:
        return np.empty(0, dtype=np.int64)
    wanted = k + TIE_SLACK
    if wanted >= delta.live:
        return delta.live_positions()
    scores, positions = faiss_index.nearest(query, delta.vectors, wanted, delta.alive if delta.dead else None)
    if scores[-1] >= scores[k - 1] - 2 * scoring.MARGIN:
        return scoring.exhaustive(delta.vectors, bits.to_mask(delta.alive, delta.length), query, k)
    return positions


def _segment(part: Part, queries: NDArray[np.float32], k: int) -> Found:
    """The best k and some more live rows of one segment for each query: never fewer than k when k are alive."""
    segment, manifest = part.segment, part.segment.manifest
    wanted = min(k + TIE_SLACK, segment.rows)
    if part.live <= max(SCAN_LIVE_MAX, wanted) or part.live <= min(segment.rows // SCAN_SHARE, SCAN_SHARED_MAX):
        return _scanned(part, queries, min(wanted, part.live))
    if manifest.flat:
        return segment.refined.search(queries, wanted, wanted, 1, part.selector)
    effort = manifest.nprobe
    if part.dead:
        effort = int(effort * min((segment.rows / part.live) ** 0.5, WIDEN_MAX)) + 1
    candidates = max(manifest.candidates(k), wanted)
    scores, found = segment.refined.search(queries, wanted, candidates, effort, part.selector)
    needed = min(k, part.live)
    if (found[:, needed - 1] < 0).any():
        for row in np.flatnonzero(found[:, needed - 1] < 0).tolist():
            scores[row], found[row] = _filled(part, queries[row : row + 1], wanted, needed, candidates, effort)
    return scores, found


def _scanned(part: Part, queries: NDArray[np.float32], count: int) -> Found:
    """Exact search of the live rows alone."""
    segment = part.segment
    live = np.flatnonzero(bits.to_mask(part.alive, segment.rows)).astype(np.int64)
    scores = queries @ segment.vectors[live].astype(np.float32).T
    if count < len(live):
        chosen = np.argpartition(scores, -count, axis=1)[:, -count:]
        best = np.take_along_axis(scores, chosen, axis=1)
        ranked = np.argsort(-best, axis=1, kind="stable")
        return np.take_along_axis(best, ranked, axis=1), live[np.take_along_axis(chosen, ranked, axis=1)]
    return scores, np.broadcast_to(live, scores.shape)


def _filled(
    part: Part, query: NDArray[np.float32], wanted: int, needed: int, candidates: int, effort: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """More effort until `needed` live rows are found: a shortfall would hide acknowledged rows."""
    refined = part.segment.refined
    while effort < part.segment.effort_max:
        effort = min(4 * effort, part.segment.effort_max)
        scores, found = refined.search(query, wanted, candidates, effort, part.selector)
        if found[0, needed - 1] >= 0:
            return scores[0], found[0]
    scores, found = refined.raw.search(query, wanted, part.selector)
    return scores[0], found[0]


def _untied(
    part: Part, query: NDArray[np.float32], scores: NDArray[np.float32], found: NDArray[np.int64], k: int
) -> NDArray[np.int64]:
    """The positions found; when a tie reaches beyond them, the candidates that can share the k-th place."""
    count = len(found)
    if count < part.live and count > k and scores[-1] >= scores[k - 1] - 2 * scoring.MARGIN:
        segment, manifest = part.segment, part.segment.manifest
        if manifest.flat or part.live <= SCAN_LIVE_MAX:
            return scoring.exhaustive(segment.vectors, bits.to_mask(part.alive, segment.rows), query, k)
        depth = min(4 * max(manifest.candidates(k), count), segment.rows)
        found = segment.refined.search(query[None, :], depth, depth, manifest.nprobe, part.selector)[1][0]
    return found if found[-1] >= 0 else found[found >= 0]
