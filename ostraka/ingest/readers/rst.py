"""reStructuredText: under- and overlined headings, literal blocks after `::`, lists, paragraphs.

The level of a heading is the order in which its adornment first appears, as docutils has it.
"""

from __future__ import annotations

import re

from ostraka.ingest.blocks import BlockKind, Extract
from ostraka.ingest.readers.lines import LIST_ITEM, BlockBuilder, Line, split_lines

_ADORNMENT = re.compile(r"^([!-/:-@\[-`{-~])\1{2,}\s*$")
_TITLE_MARKUP = re.compile(r":[\w:+-]+:`([^`]*)`|[*`]+")


def read_rst(text: str) -> Extract:
    """Structure of a reStructuredText file."""
    builder = BlockBuilder()
    lines = split_lines(text)
    levels: dict[tuple[str, bool], int] = {}
    position, literal_indent, literal_waits = 0, -1, False
    while position < len(lines):
        line = lines[position]
        if line.blank:
            if literal_indent < 0:
                builder.end()
            position += 1
            continue
        if literal_waits:
            literal_waits = False
            literal_indent = line.indent if line.indent > 0 else -1
        if literal_indent >= 0 and line.indent >= literal_indent:
            builder.add(BlockKind.CODE, line)
            position += 1
            continue
        literal_indent = -1
        taken = _heading(lines, position, builder, levels)
        if taken:
            position += taken
            continue
        if LIST_ITEM.match(line.text):
            builder.end()
        builder.add(BlockKind.PROSE, line)
        literal_waits = line.text.rstrip().endswith("::")
        position += 1
    builder.end()
    return Extract(text, tuple(builder.blocks))


def _heading(lines: list[Line], position: int, builder: BlockBuilder, levels: dict[tuple[str, bool], int]) -> int:
    """Recognise a heading at `position`; the number of lines it takes, 0 for none."""
    line = lines[position]
    second = lines[position + 1] if position + 1 < len(lines) else None
    third = lines[position + 2] if position + 2 < len(lines) else None
    if second is None or second.blank:
        return 0
    if _ADORNMENT.match(line.text):
        if third is None or third.text.rstrip() != line.text.rstrip():
            return 0
        key, title, last, taken = (line.text[0], True), second, third, 3
    elif _ADORNMENT.match(second.text) and line.indent == 0 and _long_enough(line, second):
        key, title, last, taken = (second.text[0], False), line, second, 2
    else:
        return 0
    level = levels.setdefault(key, len(levels) + 1)
    words = _TITLE_MARKUP.sub(lambda match: match[1] or "", title.text).strip()
    builder.heading(line, last, level, words)
    return taken


def _long_enough(title: Line, adornment: Line) -> bool:
    return len(adornment.text.rstrip()) >= min(4, len(title.text.rstrip()))
