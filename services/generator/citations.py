"""Citations in an answer: every habit of models read, one form written. Pure.

Read: [1], [1,2], [1;2], [1-3], [1][3], [^1], 【1】, 【1†source】, [passage 2], [Passages 1 and 3], [source 1].
Written: [1][2]. A number that names no passage is dropped; a bracket that names none at all disappears.
Code (between backticks) is left alone: `a[1]` is not a citation.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_NUMBERS = r"\^?\d{1,3}(?:\s*(?:[,;&+]|-|–|and)\s*\^?\d{1,3})*"  # models write en dashes, too
_WORD = r"(?:(?:passages?|sources?|refs?|references?|documents?|docs?)\s*[.:#]?\s*)?"
_CITATION = re.compile(
    rf"(?P<space>[ \t]?)(?:\[\s*{_WORD}(?P<square>{_NUMBERS})\s*\]"
    rf"|【\s*{_WORD}(?P<lens>{_NUMBERS})\s*(?:†[^】\n]*)?】)",
    re.IGNORECASE,
)
_CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`", re.DOTALL)
_RANGE = re.compile(r"(\d+)\s*[-–]\s*\^?(\d+)")  # models write en dashes, too
_RANGE_MAX = 20
"""A longer range is a page range or a guess, not a citation of each passage."""


@dataclass(frozen=True, slots=True)
class Cited:
    """An answer with citations in one form."""

    text: str
    numbers: tuple[int, ...]
    """Distinct passage numbers in order of first appearance; each is 1 to the number of passages."""


def normalise(text: str, passages: int) -> Cited:
    """Rewrite the citations of `text` to [n] and drop those that name none of the `passages` passages.

    Idempotent: what comes out stays as it is.
    """
    numbers: dict[int, None] = {}
    while True:
        numbers.clear()
        parts: list[str] = []
        position = 0
        for code in _CODE.finditer(text):
            parts.append(_rewrite(text[position : code.start()], passages, numbers))
            parts.append(code.group())
            position = code.end()
        parts.append(_rewrite(text[position:], passages, numbers))
        rewritten = "".join(parts)
        # Dropping a bracket can close the gap in an outer one, as in "[1[9]]"; it ends because that only shortens.
        if rewritten == text:
            return Cited(text, tuple(numbers))
        text = rewritten


def _rewrite(text: str, passages: int, numbers: dict[int, None]) -> str:
    def replace(match: re.Match[str]) -> str:
        found = [n for n in _expand(match["square"] or match["lens"]) if 1 <= n <= passages]
        numbers.update(dict.fromkeys(found))
        return match["space"] + "".join(f"[{n}]" for n in dict.fromkeys(found)) if found else ""

    return _CITATION.sub(replace, text)


def _expand(listing: str) -> list[int]:
    numbers: list[int] = []
    position = 0
    for span in _RANGE.finditer(listing):
        numbers += [int(digits) for digits in re.findall(r"\d+", listing[position : span.start()])]
        first, last = int(span[1]), int(span[2])
        numbers += range(first, last + 1) if 0 <= last - first < _RANGE_MAX else [first, last]
        position = span.end()
    return numbers + [int(digits) for digits in re.findall(r"\d+", listing[position:])]
