"""Python source: one section per module, class and function, named by its path.

A function's section is its source with decorators, comments above it and docstring; a class's is its header,
docstring and attributes; what stands between belongs to the enclosing scope. Source that does not parse is read
as lines of code.
"""

from __future__ import annotations

import ast
import warnings
from collections.abc import Iterator, Sequence

from ostraka.ingest.blocks import Block, BlockKind, Extract
from ostraka.ingest.readers.lines import Line, split_lines

_SCOPES = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def read_python(text: str) -> Extract:
    """Structure of a Python file."""
    # Form feeds and lone carriage returns would make ast count other lines than the reader does.
    lines = split_lines(text)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the file's own invalid escapes are not this program's
            tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return Extract(text, tuple(_code(lines)))
    if not lines:
        return Extract(text, ())
    return Extract(text, tuple(_scope(tree.body, lines, 0, len(lines), 1, "")))


def _scope(
    body: Sequence[ast.stmt], lines: list[Line], first: int, end: int, level: int, prefix: str
) -> Iterator[Block]:
    """Blocks of lines [first, end): the enclosing scope's own lines, and each definition under its heading."""
    position = first
    for node in body:
        if not isinstance(node, _SCOPES):
            continue
        begin = max(position, _beginning(node, lines, position))
        stop = min(end, node.end_lineno or node.lineno)
        if begin >= stop:
            continue
        if position < begin:
            yield from _own(lines[position:begin], level, prefix)
        name = f"{prefix}{node.name}"
        if isinstance(node, ast.ClassDef):
            yield _heading(lines[begin], level, name)
            yield from _scope(node.body, lines, begin, stop, level + 1, f"{name}.")
        else:
            yield _heading(lines[begin], level, f"{name}()")
            yield from _code(lines[begin:stop])
        position = stop
    if position < end:
        yield from _own(lines[position:end], level, prefix)


def _own(lines: list[Line], level: int, prefix: str) -> Iterator[Block]:
    """Lines of the enclosing scope after a definition: its heading again, so that they are not taken for the
    definition's."""
    blocks = list(_code(lines))
    if blocks:
        if prefix:
            yield _heading(lines[0], level - 1, prefix.removesuffix("."))
        else:
            yield _heading(lines[0], level, "")
        yield from blocks


def _heading(line: Line, level: int, title: str) -> Block:
    """A heading of no length: its words stand in the code itself and stay there."""
    return Block(BlockKind.HEADING, line.start, line.start, level, title)


def _beginning(node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef, lines: list[Line], lowest: int) -> int:
    """Index of the first line of a definition: its decorators and the comments right above."""
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)]) - 1
    while first - 1 >= lowest and lines[first - 1].text.lstrip().startswith("#"):
        first -= 1
    return first


def _code(lines: list[Line]) -> Iterator[Block]:
    """One block from the first to the last line that is not blank."""
    filled = [line for line in lines if not line.blank]
    if filled:
        yield Block(BlockKind.CODE, filled[0].start, filled[-1].end)
