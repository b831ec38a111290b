"""Plain text: paragraphs between blank lines, list items."""

from __future__ import annotations

from ostraka.ingest.blocks import BlockKind, Extract
from ostraka.ingest.readers.lines import LIST_ITEM, BlockBuilder, split_lines


def read_plain(text: str) -> Extract:
    """Structure of plain text."""
    builder = BlockBuilder()
    for line in split_lines(text):
        if line.blank:
            builder.end()
            continue
        if LIST_ITEM.match(line.text):
            builder.end()
        builder.add(BlockKind.PROSE, line)
    builder.end()
    return Extract(text, tuple(builder.blocks))
