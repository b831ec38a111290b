"""An answer made of the passages' own sentences. Pure; no model, no network.

Each unit (sentence, item, code block) of the passages in the prompt is scored by how much of the question's weight
its words cover. A word weighs its inverse document frequency among the units (Robertson and Sparck Jones 1976, the
smoothed form of BM25), so a word that is nowhere weighs most and a question about something else stays uncovered.
Units are then taken greedily, each discounted by its overlap with those already taken (maximal marginal relevance,
Carbonell and Goldstein 1998). Nothing is rephrased: an instruction in a passage comes out in quotation marks.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from services.generator.prompt import Evidence
from services.generator.sentences import Unit, split
from services.generator.tokens import cut_to_tokens, estimate_tokens

UNITS_MAX = 4
"""Units in one answer: enough to support it, short enough to read."""
COVERAGE_MIN = 0.25
"""Share of the question's weight that the best unit and its title must cover; below it the answer is an abstention."""
_SCORE_SHARE_MIN = 0.5
"""A further unit must score at least this share of the best."""
_SIMILAR_MAX = 0.6
"""Jaccard similarity above which a unit repeats one already taken."""
_TITLE_WEIGHT = 0.35
_CODE_WEIGHT = 0.75
_WORDS_SHORT, _WORDS_LONG = 4, 40

_WORD = re.compile(r"[^\W_]+(?:_[^\W_]+)*")
_KEYWORD = re.compile(
    r"[`'\"“‘]([a-z]+)[`'\"”’]|\b([a-z]+)\s+(?:statement|clause|keyword|operator|loop|expression|block|command|method)s?\b"
)
_CJK = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")
# fmt: off
_STOPWORDS = frozenset({
    "a", "about", "all", "also", "am", "an", "and", "any", "are", "as", "at", "be", "been", "being", "but", "by", "can",
    "could", "describe", "did", "do", "does", "each", "explain", "for", "from", "give", "had", "has", "have", "how",
    "i", "if", "in", "into", "is", "it", "its", "just", "like", "may", "me", "mean", "means", "might", "mine", "much",
    "must", "my", "of", "on", "one", "or", "our", "please", "shall", "should", "show", "so", "some", "such", "tell",
    "than", "that", "the", "their", "them", "then", "there", "these", "they", "this", "those", "to", "used", "was",
    "we", "were", "what", "when", "where", "which", "while", "who", "whom", "whose", "why", "will", "with", "would",
    "you", "your",
})
# fmt: on
_SUFFIXES = (("ies", "y"), ("sses", "ss"), ("ing", ""), ("ed", ""), ("es", ""), ("s", ""))
_STEM_CHARS_MIN = 4


@dataclass(frozen=True, slots=True)
class Quote:
    """Words of passage `number`, verbatim."""

    number: int
    text: str
    code: bool

    def render(self) -> str:
        """The quotation with its citation behind it."""
        return f"```\n{self.text}\n``` [{self.number}]" if self.code else f"“{self.text}” [{self.number}]"


@dataclass(frozen=True, slots=True)
class Extract:
    """An extractive answer; no quotes means abstention."""

    quotes: tuple[Quote, ...]
    cut: bool
    """The token budget left something out."""


@dataclass(frozen=True, slots=True)
class _Candidate:
    number: int
    index: int
    unit: Unit
    terms: frozenset[str]
    score: float
    coverage: float


def extract(question: str, evidence: Sequence[Evidence], tokens_max: int) -> Extract:
    """The best supporting units for `question`, at most UNITS_MAX and about `tokens_max` tokens."""
    keep = keywords(question)
    wanted = frozenset(terms(question, keep))
    quotes = _merge(_choose(_candidates(wanted, evidence, keep)), evidence)
    kept: list[Quote] = []
    room = tokens_max
    for quote in quotes:
        cost = estimate_tokens(quote.render())
        if cost > room and not kept:
            frame = cost - estimate_tokens(quote.text)
            kept.append(Quote(quote.number, cut_to_tokens(quote.text, max(room - frame, 1)), quote.code))
            return Extract(tuple(kept), cut=True)
        if cost > room:
            return Extract(tuple(kept), cut=True)
        kept.append(quote)
        room -= cost
    return Extract(tuple(kept), cut=False)


def keywords(question: str) -> frozenset[str]:
    """Stopwords that the question is about: quoted, or named as in "the with statement"."""
    found = {word for match in _KEYWORD.finditer(question.lower()) for word in match.groups() if word}
    return frozenset(found & _STOPWORDS)


def terms(text: str, keep: frozenset[str] = frozenset()) -> Iterable[str]:
    """Content words, lower case, with plural and verb endings taken off; identifiers also in their parts.

    Stopwords are left out, except those in `keep`.
    """
    for match in _WORD.finditer(text.lower()):
        word = match.group()
        if _CJK.search(word):
            yield from (word[i : i + 2] for i in range(max(len(word) - 1, 1)))
        elif word in keep:
            yield word
        elif word not in _STOPWORDS:
            yield _stem(word)
            if "_" in word:
                yield from (_stem(part) for part in word.split("_") if part not in _STOPWORDS)


def _stem(word: str) -> str:
    for suffix, replacement in _SUFFIXES:
        if word.endswith(suffix) and len(word) - len(suffix) >= _STEM_CHARS_MIN - len(replacement):
            if suffix == "s" and word.endswith(("ss", "us", "is")):
                return word
            stem = word[: len(word) - len(suffix)] + replacement
            # "yielding" and "yields" must meet "yield"; "using" and "uses" must meet "use".
            return stem[:-1] if len(stem) > _STEM_CHARS_MIN and stem[-1] == stem[-2] and stem[-1] not in "ls" else stem
    return word[:-1] if word.endswith("e") and len(word) > _STEM_CHARS_MIN else word


def _candidates(wanted: frozenset[str], evidence: Sequence[Evidence], keep: frozenset[str]) -> list[_Candidate]:
    if not wanted:
        return []
    rows = [
        (number, index, unit, tuple(terms(unit.text, keep)))
        for number, passage in enumerate(evidence, start=1)
        for index, unit in enumerate(split(passage.text))
    ]
    weights = _weights(wanted, [frozenset(words) for *_, words in rows])
    titles = [frozenset(terms(passage.title, keep)) & wanted for passage in evidence]
    total = sum(weights.values())
    found = []
    for number, index, unit, words in rows:
        have = frozenset(words)
        hits = have & wanted
        if not hits:
            continue
        own = sum(weights[term] for term in hits)
        coverage = (own + _TITLE_WEIGHT * sum(weights[term] for term in titles[number - 1] - hits)) / total
        shape = _shape(len(words)) * (_CODE_WEIGHT if unit.code else 1.0)
        place = (1 + 0.15 / (1 + index)) * (1 + 0.25 / number)
        found.append(_Candidate(number, index, unit, have, coverage * shape * place, coverage))
    return found


def _weights(wanted: frozenset[str], units: Sequence[frozenset[str]]) -> Mapping[str, float]:
    frequency = Counter(term for unit in units for term in unit & wanted)
    count = len(units)
    # Sorted, so that sums do not depend on the hash seed of the process.
    return {t: math.log(1 + (count - frequency[t] + 0.5) / (frequency[t] + 0.5)) for t in sorted(wanted)}


def _shape(words: int) -> float:
    """Headings say too little, walls of text too much."""
    if words < _WORDS_SHORT:
        return 0.6
    return 1.0 if words <= _WORDS_LONG else _WORDS_LONG / words


def _choose(candidates: Sequence[_Candidate]) -> list[_Candidate]:
    if max((c.coverage for c in candidates), default=0.0) < COVERAGE_MIN:
        return []
    left = sorted(candidates, key=lambda c: (-c.score, c.number, c.index))
    chosen = [left.pop(0)]
    while left and len(chosen) < UNITS_MAX:
        best = max(left, key=lambda c: (c.score * (1 - _similarity(c, chosen)), -c.number, -c.index))
        left.remove(best)
        similarity = _similarity(best, chosen)
        if best.score * (1 - similarity) < _SCORE_SHARE_MIN * chosen[0].score:
            break
        if similarity <= _SIMILAR_MAX:
            chosen.append(best)
    return chosen


def _similarity(candidate: _Candidate, chosen: Sequence[_Candidate]) -> float:
    return max(len(candidate.terms & other.terms) / len(candidate.terms | other.terms) for other in chosen)


def _merge(chosen: Sequence[_Candidate], evidence: Sequence[Evidence]) -> list[Quote]:
    """Quotes by passage, the passage of the best unit first; neighbouring sentences of a passage join."""
    quotes: list[Quote] = []
    for number in dict.fromkeys(c.number for c in chosen):
        text = evidence[number - 1].text
        runs: list[list[_Candidate]] = []
        for candidate in sorted((c for c in chosen if c.number == number), key=lambda c: c.index):
            last = runs[-1][-1] if runs else None
            if last and last.index + 1 == candidate.index and not (last.unit.code or candidate.unit.code):
                runs[-1].append(candidate)
            else:
                runs.append([candidate])
        quotes += [Quote(number, text[run[0].unit.start : run[-1].unit.end], run[0].unit.code) for run in runs]
    return quotes
