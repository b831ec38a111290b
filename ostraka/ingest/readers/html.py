"""HTML by the standard library's parser: visible text, headings, list items, tables and preformatted text.

Passages hold visible text; their positions point into the file, markup included.
"""

from __future__ import annotations

import re
from html import unescape
from html.parser import HTMLParser

from ostraka.ingest.blocks import Block, BlockKind, Extract

_HEADINGS = {f"h{level}": level for level in range(1, 7)}
_INVISIBLE = frozenset(("script", "style", "template", "noscript", "svg", "math", "nav", "iframe", "object"))
# fmt: off
_BREAKING = frozenset((
    "address", "article", "aside", "blockquote", "body", "br", "center", "dd", "details", "dialog", "div",
    "dl", "dt", "fieldset", "figcaption", "figure", "footer", "form", "header", "hr", "html", "li", "main",
    "menu", "ol", "p", "pre", "section", "summary", "table", "tbody", "tfoot", "thead", "tr", "ul",
))
# fmt: on
_SPACING = frozenset(("td", "th"))
_WORD_OR_SPACE = re.compile(r"\s+|\S+")


class _Visible(HTMLParser):
    """Builds the visible text, its blocks and anchors back into the file."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=False)
        # HTMLParser counts \n alone as a line break.
        self._line_starts = [0, *(match.end() for match in re.finditer("\n", source))]
        self._parts: list[str] = []
        self._length = 0
        self._block_start: int | None = None
        self._block_part = 0
        self._heading_level = 0
        self._preformatted = 0
        self._invisible: list[str] = []
        self._in_title = False
        self.title = ""
        self.blocks: list[Block] = []
        self.anchors: list[tuple[int, int]] = []

    @property
    def text(self) -> str:
        return "".join(self._parts)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:  # noqa: ARG002 the base's signature
        if tag in _INVISIBLE:
            self._invisible.append(tag)
        elif tag == "title":
            self._in_title = True
        elif tag in _HEADINGS:
            self.end_block()
            self._heading_level = _HEADINGS[tag]
        elif tag in _BREAKING:
            self.end_block()
            self._preformatted += tag == "pre"
        elif tag in _SPACING:
            self._space()

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:  # noqa: ARG002 the same
        if tag in _BREAKING:
            self.end_block()

    def handle_endtag(self, tag: str) -> None:
        if tag in self._invisible:
            del self._invisible[self._invisible.index(tag) :]
        elif tag == "title":
            self._in_title = False
        elif tag in _HEADINGS:
            self.end_block()
            self._heading_level = 0
        elif tag in _BREAKING:
            self.end_block()
            self._preformatted -= tag == "pre" and self._preformatted > 0

    def handle_data(self, data: str) -> None:
        self._visible(data, verbatim=True)

    def handle_entityref(self, name: str) -> None:
        self._visible(unescape(f"&{name};"), verbatim=False)

    def handle_charref(self, name: str) -> None:
        self._visible(unescape(f"&#{name};"), verbatim=False)

    def _visible(self, data: str, *, verbatim: bool) -> None:
        if self._invisible:
            return
        if self._in_title:
            self.title += data
            return
        line, column = self.getpos()
        source = self._line_starts[line - 1] + column
        for match in _WORD_OR_SPACE.finditer(data):
            word = match.group()
            position = source + (match.start() if verbatim else 0)
            if word.isspace() and not self._preformatted:
                self._space()
            elif word.isspace() and self._block_start is None:
                continue
            else:
                if self._block_start is None:
                    self._block_start, self._block_part = self._length, len(self._parts)
                self.anchors.append((self._length, position))
                self._append(word)

    def _space(self) -> None:
        if self._block_start is not None and not self._parts[-1].isspace():
            self._append(" ")

    def _append(self, text: str) -> None:
        self._parts.append(text)
        self._length += len(text)

    def end_block(self) -> None:
        """Close the open block, without the white space at its end."""
        if self._block_start is None:
            return
        start, self._block_start = self._block_start, None
        # The block's parts are the last ones; walking back over white space finds its end.
        end, index = self._length, len(self._parts) - 1
        while self._parts[index].isspace():
            end -= len(self._parts[index])
            index -= 1
        words = self._parts[self._block_part :]
        self._append("\n\n")
        if self._heading_level:
            title = " ".join("".join(words).split())
            self.blocks.append(Block(BlockKind.HEADING, start, end, self._heading_level, title))
        else:
            kind = BlockKind.CODE if self._preformatted else BlockKind.PROSE
            self.blocks.append(Block(kind, start, end))


def read_html(text: str) -> Extract:
    """Visible text and structure of an HTML file."""
    parser = _Visible(text)
    parser.feed(text)
    parser.close()
    parser.end_block()
    return Extract(parser.text, tuple(parser.blocks), " ".join(parser.title.split()), tuple(parser.anchors))
