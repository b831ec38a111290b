"""Markdown (CommonMark's block structure, as far as cutting needs it): headings, lists, fenced and indented code,
tables, front matter."""

from __future__ import annotations

import re

from ostraka.ingest.blocks import BlockKind, Extract
from ostraka.ingest.readers.lines import LIST_ITEM, BlockBuilder, Line, split_lines

_ATX = re.compile(r"^ {0,3}(#{1,6})(?:\s+(.*?))?(?:\s+#+)?\s*$")
_SETEXT = re.compile(r"^ {0,3}(=+|-+)\s*$")
_FENCE = re.compile(r"^\s*(`{3,}|~{3,})")
_MARKUP = re.compile(r"[*_`]+|!?\[([^\]]*)\]\([^)]*\)")


def read_markdown(text: str) -> Extract:
    """Structure of a Markdown file."""
    builder = BlockBuilder()
    lines = split_lines(text)
    position = _front_matter(lines, builder)
    after_blank, in_list = True, False
    while position < len(lines):
        line = lines[position]
        following = lines[position + 1] if position + 1 < len(lines) else None
        if line.blank:
            builder.end()
            after_blank = True
            position += 1
            continue
        if _FENCE.match(line.text):
            position = _fenced(lines, position, builder)
        elif atx := _ATX.match(line.text):
            builder.heading(line, line, len(atx[1]), _words(atx[2] or ""))
            in_list = False
            position += 1
        elif after_blank and following is not None and _underlined(line, following):
            builder.heading(line, following, 1 if "=" in following.text else 2, _words(line.text))
            in_list = False
            position += 2
        else:
            in_list = _plain_line(line, builder, after_blank=after_blank, in_list=in_list)
            position += 1
        after_blank = False
    builder.end()
    return Extract(text, tuple(builder.blocks))


def _plain_line(line: Line, builder: BlockBuilder, *, after_blank: bool, in_list: bool) -> bool:
    """Add a line that is no heading and no fence; whether it belongs to a list."""
    if LIST_ITEM.match(line.text):
        builder.end()
        builder.add(BlockKind.PROSE, line)
        return True
    indented_code = line.indent >= 4 and after_blank and not in_list
    table = line.text.lstrip().startswith("|")
    builder.add(BlockKind.CODE if indented_code or table else BlockKind.PROSE, line)
    return in_list and line.indent > 0


def _front_matter(lines: list[Line], builder: BlockBuilder) -> int:
    """Metadata between two `---` at the very top, kept as one block; the line after it."""
    if not lines or lines[0].text.rstrip() != "---":
        return 0
    for end in range(1, len(lines)):
        if lines[end].text.rstrip() in ("---", "..."):
            for line in lines[: end + 1]:
                builder.add(BlockKind.CODE, line)
            builder.end()
            return end + 1
    return 0


def _fenced(lines: list[Line], position: int, builder: BlockBuilder) -> int:
    """A fenced block, unclosed ones to the end of the file; the line after it."""
    fence = _FENCE.match(lines[position].text)
    assert fence is not None
    builder.end()
    builder.add(BlockKind.CODE, lines[position])
    for index in range(position + 1, len(lines)):
        builder.add(BlockKind.CODE, lines[index])
        stripped = lines[index].text.strip()
        if stripped.startswith(fence[1]) and not stripped.strip(fence[1][0]):
            builder.end()
            return index + 1
    builder.end()
    return len(lines)


def _underlined(line: Line, following: Line) -> bool:
    return bool(_SETEXT.match(following.text)) and line.indent < 4 and not LIST_ITEM.match(line.text)


def _words(markup: str) -> str:
    return _MARKUP.sub(lambda match: match[1] or "", markup).strip()
