"""A document's text and the structure a reader found in it."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum


class BlockKind(Enum):
    """What a stretch of text is; it decides where the stretch may be cut."""

    HEADING = "heading"
    """Names what follows; becomes part of the titles, not of the passages."""
    PROSE = "prose"
    """A paragraph or list item; cut between sentences, with overlap."""
    CODE = "code"
    """Source, literal text or a table; cut between lines."""


@dataclass(frozen=True, slots=True)
class Block:
    """`text[start:end]` of its Extract."""

    kind: BlockKind
    start: int
    end: int
    level: int = 0
    """Of a heading: 1 is the outermost."""
    title: str = ""
    """Of a heading: its words without markup."""


@dataclass(frozen=True, slots=True)
class Extract:
    """What a reader made of a file. Blocks are in order and do not overlap; between them lies only white space."""

    text: str
    blocks: tuple[Block, ...]
    title: str = ""
    """The document's own title when the format has one."""
    anchors: Sequence[tuple[int, int]] = field(default=())
    """(position in `text`, position in the file), ascending; empty: `text` is the file."""

    def position_in_file(self, position: int) -> int:
        """Where the character at `position` of `text` stands in the file."""
        if not self.anchors:
            return position
        index = bisect_right(self.anchors, (position, 1 << 62)) - 1
        if index < 0:
            return self.anchors[0][1]
        here, there = self.anchors[index]
        return there + position - here
