"""What BM25 needs to know of the passages: how many there are, how long, and in how many each term occurs.

Of a shard, these are exact figures over the *live* rows of a view, whatever segments hold them and whether or not a
filter hides some: a dead row counts for nothing from the commit that kills it. So equal content has equal statistics,
before and after a merge or a restart and on every replica.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from services.shard.lexical_part import LexicalPart
from services.shard.lexical_postings import CHUNK_POSTINGS, Postings

TERMS_MAX: Final = 1 << 20
"""Terms of one shard that travel and are kept, those in most passages; a rarer one counts as absent elsewhere."""


@dataclass(frozen=True, slots=True)
class Corpus:
    """Statistics for the terms of one query."""

    passages: int
    tokens: int
    frequencies: NDArray[np.int64]
    """Passages that hold each of the query's terms."""

    def plus(self, other: Corpus) -> Corpus:
        """Both together; they are about different passages and the same terms."""
        frequencies = self.frequencies + other.frequencies
        return Corpus(self.passages + other.passages, self.tokens + other.tokens, frequencies)


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Statistics for all terms of one shard, terms ascending."""

    passages: int
    tokens: int
    terms: NDArray[np.uint64]
    frequencies: NDArray[np.uint32]

    @property
    def bytes(self) -> int:
        return self.terms.nbytes + self.frequencies.nbytes

    def of(self, terms: NDArray[np.uint64]) -> Corpus:
        """What it says about these terms."""
        found = np.zeros(len(terms), dtype=np.int64)
        at = np.searchsorted(self.terms, terms)
        held = at < len(self.terms)
        held[held] = self.terms[at[held]] == terms[held]
        found[held] = self.frequencies[at[held]]
        return Corpus(self.passages, self.tokens, found)


def corpus(parts: Sequence[LexicalPart], terms: NDArray[np.uint64]) -> Corpus:
    """Exact statistics of the live rows for these terms."""
    frequencies = np.zeros(len(terms), dtype=np.int64)
    tokens = 0
    for part in parts:
        mask = part.mask
        tokens += part.tokens
        for run in part.runs:
            starts, ends = run.find(terms)
            if mask is None:
                frequencies += ends - starts
                continue
            for number, (start, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
                frequencies[number] += np.count_nonzero(mask[run.positions[start:end]])
    return Corpus(sum(part.live for part in parts), tokens, frequencies)


def vocabulary(
    parts: Sequence[LexicalPart], pause: Callable[[], None] = lambda: None, terms_max: int = TERMS_MAX
) -> Vocabulary:
    """Exact statistics of the live rows for all their terms, in time linear in the postings.

    Beyond `terms_max` terms those in fewest passages are left out (ties: the greatest hashes), so that equal content
    still gives equal statistics.
    """
    terms = [np.empty(0, dtype=np.uint64)]
    counts = [np.empty(0, dtype=np.int64)]
    tokens = 0
    for part in parts:
        mask = part.mask
        tokens += part.tokens
        for run in part.runs:
            terms.append(run.terms)
            counts += [np.empty(0, dtype=np.int64), *_live_counts(run, mask, pause)]
    distinct, inverse = np.unique(np.concatenate(terms), return_inverse=True)
    frequencies = np.bincount(inverse, np.concatenate(counts), minlength=len(distinct)).astype(np.uint32)
    kept = np.flatnonzero(frequencies)
    if len(kept) > terms_max:
        kept = np.sort(kept[np.argsort(-frequencies[kept].astype(np.int64), kind="stable")[:terms_max]])
    return Vocabulary(sum(part.live for part in parts), tokens, distinct[kept], frequencies[kept])


def _live_counts(
    run: Postings, mask: NDArray[np.bool_] | None, pause: Callable[[], None]
) -> Iterator[NDArray[np.int64]]:
    """How many live passages hold each term of a run, in pieces of about CHUNK_POSTINGS postings."""
    if mask is None:
        yield np.diff(run.offsets)
        return
    first = 0
    while first < len(run.terms):
        reach = run.offsets[first] + CHUNK_POSTINGS
        last = max(first + 1, int(np.searchsorted(run.offsets, reach, side="right")) - 1)
        start, end = run.offsets[first], run.offsets[last]
        living = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(mask[run.positions[start:end]])])
        yield np.diff(living[run.offsets[first : last + 1] - start])
        pause()
        first = last
