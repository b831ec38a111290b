"""A trace as text: with bars for people, as indented names for assertions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from observability import names
from observability.span_record import STATUS_ERROR, SpanRecord
from observability.trace_files import SpanNode, build_tree

WIDTH_DEFAULT = 100
NAME_SHARE = 0.5
"""Of the width, for the names; the rest is bars."""
_DETAILS = (names.LEG_ROLE, names.LEG_OUTCOME, names.SHARD, names.INDEX_EPOCH, names.CACHE_HIT, names.OUTCOME)
_DURATION_CHARS = 12


def render(spans: Iterable[SpanRecord], width: int = WIDTH_DEFAULT) -> str:
    """One line per span: indented name, service, a bar on the trace's time axis, milliseconds, what is notable."""
    roots = build_tree(spans)
    rows = [row for root in roots for row in root.walk()]
    if not rows:
        return "no spans"
    begin = min(span.start_ns for _, span in rows)
    length = max(1, max(span.end_ns for _, span in rows) - begin)
    name_chars = max(24, int(width * NAME_SHARE))
    bar_chars = max(10, width - name_chars - _DURATION_CHARS)
    head = f"trace {rows[0][1].trace_id}  {length / 1e6:.1f} ms  {len(rows)} spans"
    return "\n".join([head, *(_row(depth, span, begin, length, name_chars, bar_chars) for depth, span in rows)])


def tree_text(spans: Iterable[SpanRecord], attributes: Sequence[str] = ()) -> str:
    """Indented names with kind and service, siblings by name: the same for equal traces, whatever the timing.

    `attributes` names those to print behind, where a span has them.
    """
    lines: list[str] = []
    for root in sorted(build_tree(spans), key=lambda node: _sort_key(node, attributes)):
        _tree_lines(root, 0, attributes, lines)
    return "\n".join(lines)


def _tree_lines(node: SpanNode, depth: int, attributes: Sequence[str], lines: list[str]) -> None:
    lines.append("  " * depth + _label(node.span, attributes))
    for child in sorted(node.children, key=lambda below: _sort_key(below, attributes)):
        _tree_lines(child, depth + 1, attributes, lines)


def _sort_key(node: SpanNode, attributes: Sequence[str]) -> str:
    lines: list[str] = []
    for _, span in node.walk():
        lines.append(_label(span, attributes))
    return "\n".join([lines[0], *sorted(lines[1:])])


def _label(span: SpanRecord, attributes: Sequence[str]) -> str:
    kind = {2: " SERVER", 3: " CLIENT"}.get(span.kind, "")
    service = f" {span.service}" if span.service else ""
    shown = "".join(f" {key.rpartition('.')[2]}={span.attributes[key]}" for key in attributes if key in span.attributes)
    return f"{span.name}{kind}{service}{shown}"


def _row(depth: int, span: SpanRecord, begin: int, length: int, name_chars: int, bar_chars: int) -> str:
    who = f" ({span.service}{'/' + span.instance if span.instance else ''})" if span.service else ""
    name = _fit("  " * depth + span.name + who, name_chars)
    first = min(bar_chars - 1, (span.start_ns - begin) * bar_chars // length)
    last = min(bar_chars, max(first + 1, -(-(span.end_ns - begin) * bar_chars // length)))
    bar = " " * first + "█" * (last - first) + " " * (bar_chars - last)
    return f"{name}{bar}{span.duration_ms:>9.2f} ms{_notable(span)}".rstrip()


def _notable(span: SpanRecord) -> str:
    found = [f"{key.rpartition('.')[2]}={span.attributes[key]}" for key in _DETAILS if key in span.attributes]
    found = [text for text in found if text != f"outcome={names.OUTCOME_OK}"]
    if span.status == STATUS_ERROR:
        found.append(f"ERROR {span.status_message}".rstrip())
    return "  " + " ".join(found) if found else ""


def _fit(text: str, chars: int) -> str:
    return text.ljust(chars) if len(text) < chars else text[: chars - 2] + "… "
