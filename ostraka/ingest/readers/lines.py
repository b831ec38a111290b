"""Lines with their positions, and what several line-based formats share."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ostraka.ingest.blocks import Block, BlockKind

LIST_ITEM = re.compile(r"^\s*(?:[-*+•]|\(?\d{1,3}[.)]|[A-Za-z][.)])\s+\S")


@dataclass(frozen=True, slots=True)
class Line:
    """One line; `end` is before its line break."""

    start: int
    end: int
    text: str

    @property
    def blank(self) -> bool:
        return not self.text.strip()

    @property
    def indent(self) -> int:
        """Leading white space in columns, tabs to multiples of four."""
        expanded = self.text.expandtabs(4)
        return len(expanded) - len(expanded.lstrip())


def split_lines(text: str) -> list[Line]:
    """Every line of `text`; \\n, \\r\\n and \\r end one."""
    lines = []
    for match in re.finditer(r"[^\r\n]*(?:\r\n|\r|\n|$)", text):
        if match.start() == match.end():
            continue
        body = match.group().rstrip("\r\n")
        lines.append(Line(match.start(), match.start() + len(body), body))
    return lines


class BlockBuilder:
    """Collects lines into blocks; a blank line, a list item or another kind ends the one before."""

    def __init__(self) -> None:
        self.blocks: list[Block] = []
        self._open: tuple[BlockKind, int, int] | None = None

    def heading(self, first: Line, last: Line, level: int, title: str) -> None:
        """A heading that spans the lines from `first` to `last`."""
        self.end()
        self.blocks.append(Block(BlockKind.HEADING, first.start, last.end, level, title))

    def add(self, kind: BlockKind, line: Line) -> None:
        """One more line of the open block if it is of this kind, else the first of a new one."""
        if self._open is not None and self._open[0] is kind:
            self._open = (kind, self._open[1], line.end)
        else:
            self.end()
            self._open = (kind, line.start, line.end)

    def end(self) -> None:
        """Close the open block."""
        if self._open is not None:
            self.blocks.append(Block(*self._open))
            self._open = None
