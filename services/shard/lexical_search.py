"""BM25 over the parts of one view.

score(q, d) = sum over the terms of q of  weight * idf * tf / (tf + k1 * (1 - b + b * length / mean length)),
idf = ln(1 + (N - df + 0.5) / (df + 0.5))      (Robertson and Zaragoza, "The Probabilistic Relevance Framework: BM25 and
Beyond", 2009; the form without the constant factor k1 + 1 and with an idf that is never negative is Lucene's.)

Scores are summed in float64 in ascending order of the terms' hashes and rounded once to float32, so a row has the same
score in the delta, in any segment, and on every replica whose statistics are equal.

Every posting of the query's terms is looked at. Skipping those that cannot matter (MaxScore: Turtle and Flood, "Query
Evaluation: Strategies and Optimizations", 1995) was measured: of the 18,500 postings that a web question has on 57,181
passages it spares two thirds and yet takes three times as long, since each term then costs calls of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Final

import numpy as np
from numpy.typing import NDArray

from services.runtime.config import LexicalConfig
from services.shard.analyzer import Analyzer, QueryTerms, analyzer
from services.shard.lexical_part import LexicalPart
from services.shard.lexical_postings import Postings
from services.shard.statistics import Corpus
from services.shard.view_search import Candidates

BLOCK: Final = 64
"""Rows whose best score stands for them when the k-th best is bounded from below."""
TOGETHER_MAX: Final = 1 << 19
"""Postings scored in one go, in about 20 MB."""


@dataclass(frozen=True, slots=True)
class Lexical:
    """How a collection's texts are analysed and scored."""

    analyzer: Analyzer
    k1: float
    b: float


def lexical_of(config: LexicalConfig) -> Lexical:
    """A collection's analyzer and constants."""
    return Lexical(analyzer(config.language), config.k1, config.b)


@dataclass(frozen=True, slots=True)
class Scorer:
    """One query, ready for any part of the collection that `corpus` describes."""

    terms: NDArray[np.uint64]
    factors: NDArray[np.float64]
    """Weight times idf of each term."""
    floor: float
    """k1 * (1 - b)."""
    slope: float
    """k1 * b / mean length."""


def scorer(query: QueryTerms, corpus: Corpus, lexical: Lexical) -> Scorer:
    """The query's terms with what each is worth in this corpus."""
    df = np.minimum(corpus.frequencies, corpus.passages).astype(np.float64)
    idf = np.log(1.0 + (corpus.passages - df + 0.5) / (df + 0.5))
    mean = max(corpus.tokens, 1) / max(corpus.passages, 1)
    return Scorer(query.terms, query.weights * idf, lexical.k1 * (1.0 - lexical.b), lexical.k1 * lexical.b / mean)


def search(parts: Sequence[LexicalPart], query: Scorer, k: int) -> Candidates:
    """Every live row that can be among the best `k`: scores above 0, descending, ties of the k-th included."""
    scores = [np.empty(0, dtype=np.float32)]
    rids = [np.empty(0, dtype=np.int64)]
    numbers = [np.empty(0, dtype=np.int16)]
    for part in parts:
        values = _all_scores(part, query)
        if values is None:
            continue
        best = np.flatnonzero(values >= _bar(values, k))
        scores.append(values[best])
        rids.append(np.asarray(part.rids[best], dtype=np.int64))
        numbers.append(np.full(len(best), part.number, dtype=np.int16))
    return _best(np.concatenate(scores), np.concatenate(rids), np.concatenate(numbers), k)


def scores_of(parts: Sequence[LexicalPart], query: Scorer, rids: NDArray[np.int64]) -> NDArray[np.float32]:
    """The score of each of `rids`, float32; 0 for a row without any of the terms."""
    found = np.zeros(len(rids), dtype=np.float32)
    for part in parts:
        positions = part.positions(rids)
        here = np.flatnonzero(positions >= 0)
        if len(here):
            found[here] = _scores_at(part, query, positions[here])
    return found


def _all_scores(part: LexicalPart, query: Scorer) -> NDArray[np.float32] | None:
    """The score of every position, dead ones 0, padded to whole blocks; None when no term occurs."""
    slices = _slices(part, query) if part.live else []
    if not slices:
        return None
    padded = -(-part.rows // BLOCK) * BLOCK
    if sum(piece.end - piece.start for piece in slices) <= TOGETHER_MAX:
        places, values = _contributions(part, slices, query)
        sums = np.asarray(np.bincount(places, values, minlength=padded), dtype=np.float64)
    else:  # term by term, in the same order and so to the same sums, within the memory of one term
        sums = np.zeros(padded, dtype=np.float64)
        for piece in slices:
            places, values = _contributions(part, [piece], query)
            sums[places] += values
    scores = sums.astype(np.float32)
    mask = part.mask
    if mask is not None:
        scores[: part.rows] *= mask
    return scores


@dataclass(frozen=True, slots=True)
class _Slice:
    """The postings of one term in one run."""

    number: int
    """Of the term in the query."""
    run: Postings
    start: int
    end: int


def _slices(part: LexicalPart, query: Scorer) -> list[_Slice]:
    """By ascending term. A position lies in one run, so its terms stay in order whatever the runs are."""
    found = [
        _Slice(number, run, start, end)
        for run in part.runs
        for number, (start, end) in enumerate(zip(*(bound.tolist() for bound in run.find(query.terms)), strict=True))
        if start < end
    ]
    return sorted(found, key=attrgetter("number"))


def _contributions(
    part: LexicalPart, slices: Sequence[_Slice], query: Scorer
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """(position, what a term adds to its score) for each posting of the slices."""
    places = np.concatenate([each.run.positions[each.start : each.end] for each in slices]).astype(np.int64)
    tf = np.concatenate([each.run.frequencies[each.start : each.end] for each in slices]).astype(np.float64)
    counts = [each.end - each.start for each in slices]
    factors = np.repeat(query.factors[[each.number for each in slices]], counts)
    return places, _worth(tf, part.lengths[places], factors, query)


def _worth(
    tf: NDArray[np.float64], lengths: NDArray[np.uint32], factors: NDArray[np.float64] | float, query: Scorer
) -> NDArray[np.float64]:
    """factor * tf / (tf + k1 * (1 - b + b * length / mean length)), in this order of operations everywhere."""
    norm = lengths * np.float64(query.slope)
    norm += query.floor
    norm += tf
    return np.asarray(factors * tf / norm, dtype=np.float64)


def _scores_at(part: LexicalPart, query: Scorer, positions: NDArray[np.int64]) -> NDArray[np.float32]:
    """The scores of a few positions: binary searches instead of walks through the postings."""
    scores = np.zeros(len(positions), dtype=np.float64)
    bounds = [(run, *(bound.tolist() for bound in run.find(query.terms))) for run in part.runs]
    for number, factor in enumerate(query.factors.tolist()):
        for run, starts, ends in bounds:
            tf = _frequencies(run, starts[number], ends[number], positions)
            held = np.flatnonzero(tf)
            scores[held] += _worth(tf[held], part.lengths[positions[held]], factor, query)
    return scores.astype(np.float32)


def _frequencies(run: Postings, start: int, end: int, positions: NDArray[np.int64]) -> NDArray[np.float64]:
    """How often a term occurs at each of `positions`."""
    if start == end:
        return np.zeros(len(positions), dtype=np.float64)
    held = run.positions[start:end]
    at = np.minimum(np.searchsorted(held, positions), len(held) - 1)
    return np.where(held[at] == positions, run.frequencies[start:end][at], 0).astype(np.float64)


def _bar(scores: NDArray[np.float32], k: int) -> np.float32:
    """A score that at least k rows reach, or the least above 0: the k-th greatest of the blocks' best."""
    least = np.float32(np.finfo(np.float32).tiny)
    peaks = scores.reshape(-1, BLOCK).max(axis=1)
    if k < len(peaks):
        return max(np.partition(peaks, -k)[-k], least)
    return max(np.partition(scores, -k)[-k], least) if k < len(scores) else least


def _best(scores: NDArray[np.float32], rids: NDArray[np.int64], numbers: NDArray[np.int16], k: int) -> Candidates:
    if len(scores) > k:
        kept = scores >= np.partition(scores, -k)[-k]
        scores, rids, numbers = scores[kept], rids[kept], numbers[kept]
    ranked = np.argsort(-scores, kind="stable")
    return Candidates(scores[ranked], rids[ranked], numbers[ranked])
