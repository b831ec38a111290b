"""Cutting documentation and code into units that can be quoted. Pure.

A unit is a sentence, a list item, a heading, or a block of code. Units are substrings: quoting one is verbatim.
Code (fenced, indented, or an interpreter session) is never cut inside a line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

UNIT_CHARS_MAX = 480
"""A longer unit is cut at a line, clause or word boundary: nobody reads a longer quotation."""

_BLANK = re.compile(r"\n[ \t]*\n")
_FENCE = re.compile(r"^[ \t]*(```|~~~)")
_CODE_LINE = re.compile(r"^(?: {4,}|\t|>>> |\.\.\. |\$ )\S?")
_ITEM = re.compile(r"^[ \t]*(?:[-*+•‣]|\d{1,3}[.)]|\(?[a-z]\))[ \t]+")
_END = re.compile(r"[.!?…。！？]+[\"'”’»)\]`*_]*(?=\s|$)|[。！？]+")
_BEGINS = re.compile(r"\s+[\"'“‘«(\[`*_]*[^\s\"'“‘«(\[`*_a-z]")
# fmt: off
_ABBREVIATIONS = frozenset({
    "e.g.", "i.e.", "etc.", "vs.", "cf.", "al.", "fig.", "figs.", "eq.", "no.", "nos.", "sec.", "dr.", "mr.", "mrs.",
    "ms.", "prof.", "st.", "jr.", "sr.", "inc.", "ltd.", "co.", "approx.", "resp.", "incl.", "viz.", "ca.", "vol.",
    "ed.", "eds.", "pp.", "p.", "ch.", "a.m.", "p.m.", "u.s.", "dept.", "est.", "jan.", "feb.", "mar.", "apr.",
    "jun.", "jul.", "aug.", "sep.", "sept.", "oct.", "nov.", "dec.",
})
# fmt: on
_LAST_WORD = re.compile(r"\S+$")


@dataclass(frozen=True, slots=True)
class Unit:
    """A quotable piece: `text == source[start:end]`, without surrounding whitespace."""

    start: int
    end: int
    text: str
    code: bool


def split(text: str) -> tuple[Unit, ...]:
    """The units of `text`, in order, not overlapping; what lies between them is whitespace."""
    units: list[Unit] = []
    for start, end, code in _blocks(text):
        pieces = [(start, end)] if code else list(_sentences(text, start, end))
        for first, last in pieces:
            units += [_unit(text, a, b, code) for a, b in _shorten(text, *_strip(text, first, last))]
    return tuple(unit for unit in units if unit.text)


def _unit(text: str, start: int, end: int, code: bool) -> Unit:
    start, end = _strip(text, start, end)
    return Unit(start, end, text[start:end], code)


def _strip(text: str, start: int, end: int) -> tuple[int, int]:
    while start < end and text[start].isspace():
        start += 1
    while end > start and text[end - 1].isspace():
        end -= 1
    return start, end


def _blocks(text: str) -> Iterator[tuple[int, int, bool]]:
    """Runs of lines: code together, prose until a blank line, a list item or code."""
    start, code, fenced = 0, False, False
    position = 0
    for line in text.splitlines(keepends=True):
        fence = bool(_FENCE.match(line))
        blank = not line.strip()
        is_code = fenced or fence or bool(_CODE_LINE.match(line)) or (code and blank)
        breaks = is_code != code or (not is_code and (blank or _ITEM.match(line))) or (fence and not fenced)
        if breaks and position > start:
            yield start, position, code
            start = position
        code = is_code
        fenced ^= fence
        position += len(line)
    if position > start:
        yield start, position, code


def _sentences(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Sentences of one prose block."""
    marker = _ITEM.match(text[start:end])
    first = start
    for mark in _END.finditer(text, start + (marker.end() if marker else 0), end):
        if mark.end() < end and not _is_end(text, first, mark):
            continue
        yield first, mark.end()
        first = mark.end()
    if first < end:
        yield first, end


def _is_end(text: str, first: int, mark: re.Match[str]) -> bool:
    """Whether a full stop ends a sentence: not behind an abbreviation or initial, not before a small letter."""
    if mark.group()[0] in "。！？":
        return True
    if not _BEGINS.match(text, mark.end()):
        return False
    word = _LAST_WORD.search(text[first : mark.end()])
    if word is None or mark.group() != ".":
        return True
    last = word.group().lstrip("([\"'“‘").lower()
    return last not in _ABBREVIATIONS and not re.fullmatch(r"[a-z]\.", last)


def _shorten(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Cut what is too long at the last line break, else clause, else space before the limit, else at the limit."""
    while end - start > UNIT_CHARS_MAX:
        window = text[start : start + UNIT_CHARS_MAX]
        cut = next(
            (at + len(mark) for mark in ("\n", "; ", ": ", ", ", " ") if (at := window.rfind(mark)) > len(window) // 3),
            len(window),
        )
        yield start, start + cut
        start += cut
    yield start, end
