"""Searching one view: exact delta, candidates from each segment, exact re-rank of all of them together.

The result of one query is every row that can be among its best k, by score; documents and payloads are fetched
afterwards, for the best rows only, because the view knows nothing but row ids.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.shard import alive as bits
from services.shard import faiss_index, scoring
from services.shard.view import FLAT, Part, View

DELTA = "delta"
TIE_SLACK = 8
"""Extra rows asked of the exact delta search, to see whether a tie crosses the k-th place."""


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
    per_part = [_segment_positions(part, queries, k, exact=exact) for part in view.parts]
    return [
        _merge(view, query, k, [positions[row] for positions in per_part], exact=exact)
        for row, query in enumerate(queries)
    ]


def _merge(
    view: View, query: NDArray[np.float32], k: int, found: list[NDArray[np.int64]], *, exact: bool
) -> Candidates:
    delta = view.delta
    positions = _delta_positions(view, query, k, exact=exact)
    scores = [scoring.scores(delta.vectors[positions], query)]
    rids = [delta.rids[positions]]
    parts = [np.zeros(len(positions), dtype=np.int16)]
    for number, (part, chosen) in enumerate(zip(view.parts, found, strict=True), start=1):
        scores.append(scoring.scores(part.segment.vectors[chosen], query))
        rids.append(part.segment.rids[chosen])
        parts.append(np.full(len(chosen), number, dtype=np.int16))
    return _best(np.concatenate(scores), np.concatenate(rids), np.concatenate(parts), k)


def _best(scores: NDArray[np.float32], rids: NDArray[np.int64], parts: NDArray[np.int16], k: int) -> Candidates:
    if len(scores) > k:
        kept = scores >= np.partition(scores, -k)[-k]
        scores, rids, parts = scores[kept], rids[kept], parts[kept]
    ranked = np.argsort(-scores, kind="stable")
    return Candidates(scores[ranked], np.asarray(rids[ranked], dtype=np.int64), parts[ranked])


def _delta_positions(view: View, query: NDArray[np.float32], k: int, *, exact: bool) -> NDArray[np.int64]:
    delta = view.delta
    if not delta.live:
        return np.empty(0, dtype=np.int64)
    wanted = k + TIE_SLACK
    if exact or wanted >= delta.live:
        return scoring.exhaustive(delta.vectors, bits.to_mask(delta.alive, delta.length), query, k)
    scores, positions = faiss_index.nearest(query, delta.vectors, wanted, delta.alive if delta.dead else None)
    if scores[-1] >= scores[k - 1] - 2 * scoring.MARGIN:
        return scoring.exhaustive(delta.vectors, bits.to_mask(delta.alive, delta.length), query, k)
    return positions


def _segment_positions(part: Part, queries: NDArray[np.float32], k: int, *, exact: bool) -> list[NDArray[np.int64]]:
    """Positions of the candidates of each query in one segment."""
    segment = part.segment
    if exact:
        mask = bits.to_mask(part.alive, segment.rows)
        return [scoring.exhaustive(segment.vectors, mask, query, k) for query in queries]
    if not part.live:
        return [np.empty(0, dtype=np.int64)] * len(queries)
    count = min(segment.manifest.candidates(k), segment.rows)
    found = segment.index.search(queries, count, segment.manifest.nprobe, part.selector)
    return [_filled(part, query, row[row >= 0], min(k, part.live)) for query, row in zip(queries, found, strict=True)]


def _filled(part: Part, query: NDArray[np.float32], found: NDArray[np.int64], needed: int) -> NDArray[np.int64]:
    """More inverted lists until `needed` live rows are found: a shortfall would hide acknowledged rows."""
    segment = part.segment
    nprobe = segment.manifest.nprobe
    while len(found) < needed and nprobe < segment.index.lists:
        nprobe = min(4 * nprobe, segment.index.lists)
        count = min(max(segment.manifest.candidates(needed), needed), segment.rows)
        row = segment.index.search(query[None, :], count, nprobe, part.selector)[0]
        found = row[row >= 0]
    if len(found) < needed:
        return scoring.exhaustive(segment.vectors, bits.to_mask(part.alive, segment.rows), query, needed)
    return found
