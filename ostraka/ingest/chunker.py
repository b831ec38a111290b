"""Blocks to passages: pure, and exact about which characters each passage stands for.

A passage holds whole sentences (or lines of code) of one section, about `words_target` of them in words. It never
ends inside a word; only a single "word" longer than `chars_max`, such as a line of base64, is cut. Within a
section a passage repeats the last sentence or two of its predecessor, so that what spans the cut is found too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from ostraka.ingest.blocks import Block, BlockKind, Extract
from ostraka.results import MetadataScalar

HEADING_SEPARATOR = " > "
# After . ! or ?, perhaps a closing quote or bracket, white space, and what can begin a sentence.
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"')\]]*\s+(?=[\"'(\[`*]*[A-Z0-9])")
_WORD = re.compile(r"\S+")


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkLimits:
    """How long passages are."""

    words_target: int = 180
    """Most words of a passage, overlap included."""
    overlap_words_max: int = 30
    """Most words repeated from the passage before."""
    chars_max: int = 8_000
    """Most characters of a passage."""
    title_chars_max: int = 300

    def __post_init__(self) -> None:
        if not 0 <= self.overlap_words_max < self.words_target or self.chars_max < 16 or self.title_chars_max < 8:
            raise ValueError(f"impossible chunk limits: {self}")


@dataclass(frozen=True, slots=True)
class Chunk:
    """One passage: `extract.text[start:end]`, under this heading path."""

    text: str
    title: str
    start: int
    end: int
    metadata: Mapping[str, MetadataScalar] = field(default_factory=dict)
    """Of this passage alone; only exported documents have it."""
    vector: tuple[float, ...] | None = None
    """Brought along by an exported document; else the mesh embeds the text."""


@dataclass(frozen=True, slots=True)
class _Unit:
    """What is never cut further."""

    start: int
    end: int
    words: int
    repeatable: bool
    """Prose may be repeated as overlap; a line of code says nothing alone."""


def chunk(extract: Extract, limits: ChunkLimits | None = None) -> list[Chunk]:
    """Cut a document into passages, in order."""
    bounds = limits or ChunkLimits()
    chunks: list[Chunk] = []
    for path, blocks in _sections(extract):
        title = HEADING_SEPARATOR.join(path)[: bounds.title_chars_max].strip()
        units = [unit for block in blocks for unit in _units(extract.text, block, bounds)]
        for start, end in _pack(units, bounds):
            chunks.append(Chunk(extract.text[start:end], title, start, end))
    return chunks


def _sections(extract: Extract) -> Iterator[tuple[list[str], list[Block]]]:
    """(heading path, blocks) for each section with text; a document of headings alone is one section of them."""
    path: list[tuple[int, str]] = [(0, extract.title)] if extract.title else []
    body: list[Block] = []
    found = False
    for block in extract.blocks:
        if block.kind is not BlockKind.HEADING:
            body.append(block)
            continue
        if body:
            found = True
            yield [title for _, title in path], body
            body = []
        path = [(level, title) for level, title in path if level < block.level]
        # A document's title is usually its first heading too; saying it twice would only dilute the vector.
        if block.title and not any(title == block.title for _, title in path):
            path.append((block.level, block.title))
    if body:
        yield [title for _, title in path], body
    elif not found and extract.blocks:
        yield [extract.title] if extract.title else [], list(extract.blocks)


def _units(text: str, block: Block, limits: ChunkLimits) -> Iterator[_Unit]:
    """Sentences of prose, lines of code; what is too long for a passage falls into words."""
    prose = block.kind is BlockKind.PROSE
    for start, end in _split(text, block.start, block.end, _SENTENCE_END if prose else re.compile(r"\n")):
        words = [match.span() for match in _WORD.finditer(text, start, end)]
        if not words:
            continue
        # Code keeps its indentation.
        begin = words[0][0] if prose else start
        if len(words) <= limits.words_target and words[-1][1] - begin <= limits.chars_max:
            yield _Unit(begin, words[-1][1], len(words), prose)
            continue
        for first, last in words:
            for cut in range(first, last, limits.chars_max):
                yield _Unit(cut, min(last, cut + limits.chars_max), 1, False)


def _split(text: str, start: int, end: int, separator: re.Pattern[str]) -> Iterator[tuple[int, int]]:
    position = start
    for match in separator.finditer(text, start, end):
        yield position, match.end()
        position = match.end()
    if position < end:
        yield position, end


def _pack(units: Sequence[_Unit], limits: ChunkLimits) -> Iterator[tuple[int, int]]:
    """Spans of passages: as many units as fit, then on, a little of the last repeated."""
    first = 0
    while first < len(units):
        last, words = first, units[first].words
        while (
            last + 1 < len(units)
            and words + units[last + 1].words <= limits.words_target
            and units[last + 1].end - units[first].start <= limits.chars_max
        ):
            last += 1
            words += units[last].words
        yield units[first].start, units[last].end
        if last + 1 == len(units):
            return
        first = _overlap(units, first, last, limits)


def _overlap(units: Sequence[_Unit], first: int, last: int, limits: ChunkLimits) -> int:
    """The unit that the next passage begins with: up to two sentences back, if the next one still fits."""
    begin, words = last + 1, 0
    following = units[last + 1]
    while begin - 1 > first and last + 1 - begin < 2:
        candidate = units[begin - 1]
        words += candidate.words
        fits = (
            words <= limits.overlap_words_max
            and words + following.words <= limits.words_target
            and following.end - candidate.start <= limits.chars_max
        )
        if not (candidate.repeatable and fits):
            break
        begin -= 1
    return begin
