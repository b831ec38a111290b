"""Searching one view: exact delta, re-ranked candidates of each segment, one exact score for all of them.

The result of one query is every row that can be among its best k, by score; documents and payloads are fetched
afterwards, for the best rows only, because the view knows nothing but row ids. FAISS answers whole batches and
re-ranks by itself; its scores differ from ours in the last bits, so a few more rows than k are scored again, and where
a tie could cross that border the part is scanned.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from services.shard import alive as bits
from services.shard import scoring
from services.shard.faiss_index.living import nearest_living
from services.shard.segment import FLAT
from services.shard.view import Part, View

DELTA: Final = "delta"
TIE_SLACK: Final = 4
"""Extra rows asked of FAISS, to see whether a tie crosses the k-th place."""
SCAN_ROWS_MAX: Final = 1_024
"""Up to so many live rows of a part are scored one by one: cheaper than an index, and right whatever the filter."""
SCAN_SHARE: Final = 0.02
"""Below this share of live rows an index mostly finds dead ones; every live row is scanned instead."""

WIDEN_MAX: Final = 4.0
"""Where rows died, neighbours lie farther apart: sqrt(rows / live) times the effort, at most this."""
THINNED_MIN: Final = 0.05
"""Of a list: what less than this would add is left out."""
HARDER: Final = 4
"""Times the effort, again and again, where a search found fewer than k rows."""

_NO_SCORES: Final = np.empty(0, dtype=np.float32)
_NO_ROWS: Final = np.empty(0, dtype=np.int64)
_Found = tuple[NDArray[np.float32], NDArray[np.int64]]


@dataclass(frozen=True, slots=True)
class Candidates:
    """The rows of one query that can be in its result: scores descending, ties of the k-th included."""

    scores: NDArray[np.float32]
    rids: NDArray[np.int64]
    parts: NDArray[np.int16]
    """Index into `part_names(view)`."""


class _Near(NamedTuple):
    """What one part found for one query, with scores by FAISS: exact but for rounding."""

    number: int
    rids: NDArray[np.int64]
    vectors: scoring.Rows
    scores: NDArray[np.float32]
    positions: NDArray[np.int64]


def part_names(view: View) -> list[tuple[str, str]]:
    """(index part, index kind) of the delta and of each segment, as named in provenance."""
    return [(DELTA, FLAT), *((part.segment.name, part.segment.manifest.factory) for part in view.parts)]


def search(view: View, queries: NDArray[np.float32], k: int, *, exact: bool) -> list[Candidates]:
    """Candidates for each of the unit queries (n, dim), at least min(k, rows live) of them each."""
    if len(queries) == 1 and not exact and len(view.parts) + bool(view.delta.live) > 1:
        alone = _one(view, queries, k)
        if alone is not None:
            return [alone]
    found: list[tuple[int, NDArray[np.int64], list[_Found]]] = []
    if view.delta.live:
        found.append((0, view.delta.rids, _delta(view, queries, k, exact=exact)))
    living = [(number, part) for number, part in enumerate(view.parts, start=1) if part.live]
    for number, part in living:
        found.append((number, part.segment.rids, _segment(part, queries, k, view.rows_live, exact=exact)))
    least = min(k, view.rows_live)
    for row in range(len(queries)):
        if sum(len(each[row][0]) for _, _, each in found) < least:
            _search_harder(found, living, queries, row, k)
    return [_best([(number, rids, each[row]) for number, rids, each in found], k) for row in range(len(queries))]


def _one(view: View, query: NDArray[np.float32], k: int) -> Candidates | None:
    """The candidates of one query (1, dim); None if fewer than min(k, rows live) were found.

    The nearest lists are found once for all segments of a codec, and only those rows are scored exactly whose scores
    by FAISS can be among the best k of all parts together.
    """
    rows_live = view.rows_live
    found: list[_Near] = []
    if view.delta.live:
        found.append(_Near(0, view.delta.rids, view.delta.vectors, *_delta_near(view, query, k)))
    living = [(number, part) for number, part in enumerate(view.parts, start=1) if part.live]
    for (number, part), near in zip(living, _near(living, query, rows_live, k), strict=True):
        found.append(_Near(number, part.segment.rids, part.segment.vectors, *near))
    scores = np.concatenate([_NO_SCORES, *(each.scores for each in found)])
    if len(scores) < min(k, rows_live):
        return None
    least = np.partition(scores, -k)[-k] - 2 * scoring.MARGIN if len(scores) > k else np.float32(-np.inf)
    chosen = [each._replace(positions=each.positions[each.scores >= least]) for each in found]
    if not chosen:
        return _best([], k)
    return _ranked(
        scoring.scores(np.concatenate([each.vectors[each.positions] for each in chosen], dtype=np.float32), query[0]),
        np.concatenate([each.rids[each.positions] for each in chosen]),
        np.repeat([each.number for each in chosen], [len(each.positions) for each in chosen]),
        k,
    )


def _delta_near(view: View, query: NDArray[np.float32], k: int) -> _Found:
    """(scores but for rounding, positions) of the delta's rows that can be among its best k, ties included."""
    delta, wanted = view.delta, k + TIE_SLACK
    if wanted < delta.live:
        scores, positions = nearest_living(query, delta.vectors, wanted, delta.alive if delta.dead else None)
        if not _tied(scores, positions, k).any():
            return scores[0], positions[0]
    return _delta(view, query, k, exact=True)[0]


def _near(living: Sequence[tuple[int, Part]], query: NDArray[np.float32], rows_live: int, k: int) -> Iterator[_Found]:
    """(scores but for rounding, positions) of the best rows of each numbered segment."""
    wanted = k + TIE_SLACK
    efforts: dict[int, int] = {}
    sharing: dict[str, list[int]] = {}
    for number, part in living:
        if part.segment.refined.names_lists and _indexed(part, wanted):
            efforts[number] = _effort(part, rows_live)
            sharing.setdefault(part.segment.manifest.codec, []).append(efforts[number])
    nearest: dict[str, NDArray[np.int64]] = {}
    for number, part in living:
        refined, manifest = part.segment.refined, part.segment.manifest
        shared = sharing.get(manifest.codec, [])
        if refined.index is None or number not in efforts:
            yield _segment(part, query, k, rows_live, exact=False)[0]
            continue
        candidates = max(manifest.candidates(k), wanted)
        if len(shared) == 1:  # then FAISS finds them faster in the same call
            scores, positions = refined.search(query, wanted, candidates, efforts[number], part.selector)
            held = positions[0] >= 0
            yield scores[0, held], positions[0, held]
            continue
        if manifest.codec not in nearest:
            nearest[manifest.codec] = refined.index.nearest_lists(query, max(shared))
        yield refined.search_lists(query, wanted, candidates, nearest[manifest.codec][: efforts[number]], part.selector)


def _search_harder(
    found: list[tuple[int, NDArray[np.int64], list[_Found]]],
    living: list[tuple[int, Part]],
    queries: NDArray[np.float32],
    row: int,
    k: int,
) -> None:
    """Replace what the parts found for one query. The lists nearest to it hold fewer than k live rows in all: by
    deletion, or because the rows of a part lie elsewhere. A shortfall would hide acknowledged rows."""
    parts = dict(living)
    for number, _, each in found:
        if number in parts:
            each[row] = _whole(parts[number], queries[row : row + 1], k)


def _best(found: list[tuple[int, NDArray[np.int64], _Found]], k: int) -> Candidates:
    """One query's rows of all parts: those that reach the k-th score."""
    if len(found) == 1:
        number, rids, (scores, positions) = found[0]
        return _ranked(scores, rids[positions], np.full(len(positions), number, dtype=np.int16), k)
    return _ranked(
        np.concatenate([_NO_SCORES, *(scores for _, _, (scores, _) in found)]),
        np.concatenate([_NO_ROWS, *(rids[positions] for _, rids, (_, positions) in found)]),
        np.repeat([number for number, _, _ in found], [len(positions) for _, _, (_, positions) in found]),
        k,
    )


def _ranked(
    scores: NDArray[np.float32], rids: NDArray[np.int64], numbers: NDArray[np.integer[Any]], k: int
) -> Candidates:
    ranked = (-scores).argsort(kind="stable")
    if len(ranked) > k:
        least = scores[ranked[k - 1]]
        last = k
        while last < len(ranked) and scores[ranked[last]] >= least:
            last += 1
        ranked = ranked[:last]
    return Candidates(scores[ranked], rids[ranked], numbers[ranked].astype(np.int16, copy=False))


def _delta(view: View, queries: NDArray[np.float32], k: int, *, exact: bool) -> list[_Found]:
    delta = view.delta
    wanted = k + TIE_SLACK
    alive = delta.alive if delta.dead else None
    if exact or wanted >= delta.live:
        mask = bits.to_mask(delta.alive, delta.length)
        return [_scanned(delta.vectors, mask, query, k) for query in queries]
    approximate, positions = nearest_living(queries, delta.vectors, wanted, alive)
    return _settled(delta.vectors, delta.alive, queries, approximate, positions, k)


def _segment(part: Part, queries: NDArray[np.float32], k: int, rows_live: int, *, exact: bool) -> list[_Found]:
    """(scores, positions) of one segment's rows that can be among the best k, per query."""
    segment = part.segment
    wanted = k + TIE_SLACK
    if part.live <= max(SCAN_ROWS_MAX, wanted):
        return _few(part, queries)
    if exact or not _indexed(part, wanted):
        approximate, positions = segment.refined.raw.search(queries, wanted, part.selector)
        return _settled(segment.vectors, part.alive, queries, approximate, positions, k)
    candidates, effort = max(segment.manifest.candidates(k), wanted), _effort(part, rows_live)
    return _scored(
        segment.vectors, queries, segment.refined.search(queries, wanted, candidates, effort, part.selector)[1]
    )


def _indexed(part: Part, wanted: int) -> bool:
    """Whether the part's index is used, not all of its rows."""
    rows = part.segment.rows
    return not part.segment.manifest.flat and part.live > max(SCAN_ROWS_MAX, wanted, SCAN_SHARE * rows)


def _effort(part: Part, rows_live: int) -> int:
    """Where rows of the part died, or rows around it, the best ones lie farther off than when it was measured."""
    manifest = part.segment.manifest
    thinned = max(part.segment.rows / part.live, manifest.view_rows / rows_live)
    widened: float = manifest.nprobe * min(math.sqrt(thinned), WIDEN_MAX)
    return min(max(1, math.ceil(widened - THINNED_MIN)), part.segment.effort_max)


def _whole(part: Part, query: NDArray[np.float32], k: int) -> _Found:
    """min(k, rows live) or more rows for the one query (1, dim), with ever greater effort."""
    segment = part.segment
    wanted = k + TIE_SLACK
    if part.live <= max(SCAN_ROWS_MAX, wanted):
        return _few(part, query)[0]
    effort = segment.manifest.nprobe
    while not segment.manifest.flat and effort < segment.effort_max:
        effort = min(HARDER * effort, segment.effort_max)
        positions = segment.refined.search(
            query, wanted, max(segment.manifest.candidates(k), wanted), effort, part.selector
        )[1]
        if positions[0, k - 1] >= 0:
            return _scored(segment.vectors, query, positions)[0]
    return _segment(part, query, k, part.live, exact=True)[0]


def _few(part: Part, queries: NDArray[np.float32]) -> list[_Found]:
    """Every live row of a part with few of them."""
    positions = np.flatnonzero(bits.to_mask(part.alive, part.segment.rows)).astype(np.int64)
    rows = part.segment.vectors[positions].astype(np.float32)
    return [(scoring.scores(rows, query), positions) for query in queries]


def _settled(
    vectors: scoring.Rows,
    alive: NDArray[np.uint8],
    queries: NDArray[np.float32],
    approximate: NDArray[np.float32],
    positions: NDArray[np.int64],
    k: int,
) -> list[_Found]:
    """Our own scores of what an exhaustive FAISS search found; scanned again where a tie crosses its border."""
    found = _scored(vectors, queries, positions)
    for row in np.flatnonzero(_tied(approximate, positions, k)):
        found[row] = _scanned(vectors, bits.to_mask(alive, len(vectors)), queries[row], k)
    return found


def _tied(approximate: NDArray[np.float32], positions: NDArray[np.int64], k: int) -> NDArray[np.bool_]:
    """For each query whether equal scores may go on beyond what was found: FAISS's last bits are not ours."""
    return (positions[:, -1] >= 0) & (approximate[:, -1] >= approximate[:, k - 1] - 2 * scoring.MARGIN)


def _scored(vectors: scoring.Rows, queries: NDArray[np.float32], positions: NDArray[np.int64]) -> list[_Found]:
    """Exact scores of the found positions (n, m); -1, which stands at the end only, is left out."""
    if positions[:, -1].min() < 0:
        held = [row[row >= 0] for row in positions]
        return [(scoring.scores(vectors[each], query), each) for each, query in zip(held, queries, strict=True)]
    if len(queries) == 1:
        return [(scoring.scores(vectors[positions[0]], queries[0]), positions[0])]
    lines = queries.repeat(positions.shape[1], axis=0)
    scores = scoring.paired(vectors[positions.ravel()], lines).reshape(positions.shape)
    return list(zip(scores, positions, strict=True))


def _scanned(vectors: scoring.Rows, mask: NDArray[np.bool_], query: NDArray[np.float32], k: int) -> _Found:
    positions = scoring.exhaustive(vectors, mask, query, k)
    return scoring.scores(vectors[positions], query), positions
