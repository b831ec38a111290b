"""Reading the trace files of a mesh, and putting one trace together from all of them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from observability import otlp_json
from observability.span_record import SpanRecord


@dataclass(frozen=True, slots=True)
class SpanNode:
    """A span with its children, by start time."""

    span: SpanRecord
    children: tuple[SpanNode, ...]

    def walk(self, depth: int = 0) -> Iterator[tuple[int, SpanRecord]]:
        """This span and all below it, with their depth."""
        yield depth, self.span
        for child in self.children:
            yield from child.walk(depth + 1)


def read_spans(traces_dir: Path, trace_id: str = "") -> list[SpanRecord]:
    """The spans of every file in the directory, those of one trace when `trace_id` (hex, or its beginning) is given.

    A line that is cut, because its writer is writing or was killed, is passed over. Raises ValueError naming file
    and line for JSON that is not OTLP.
    """
    wanted = trace_id.lower()
    found: list[SpanRecord] = []
    for path in sorted(traces_dir.glob("*.jsonl")):
        for line in _lines(path, wanted):
            found += [span for span in line if span.trace_id.startswith(wanted)]
    return found


def trace_ids(spans: Iterable[SpanRecord]) -> list[str]:
    """The distinct traces, by the start of their first span."""
    first: dict[str, int] = {}
    for span in spans:
        first[span.trace_id] = min(span.start_ns, first.get(span.trace_id, span.start_ns))
    return sorted(first, key=lambda trace_id: (first[trace_id], trace_id))


def build_tree(spans: Iterable[SpanRecord]) -> tuple[SpanNode, ...]:
    """The roots of one trace. A span whose parent is not among `spans` is a root: nothing is left out."""
    by_id = {span.span_id: span for span in spans}
    children: dict[str, list[SpanRecord]] = {}
    roots: list[SpanRecord] = []
    for span in by_id.values():
        if span.parent_id in by_id and span.parent_id != span.span_id:
            children.setdefault(span.parent_id, []).append(span)
        else:
            roots.append(span)

    def node(span: SpanRecord) -> SpanNode:
        below = sorted(children.get(span.span_id, ()), key=_order)
        return SpanNode(span, tuple(node(child) for child in below))

    return tuple(node(span) for span in sorted(roots, key=_order))


def _lines(path: Path, wanted: str) -> Iterator[list[SpanRecord]]:
    data = path.read_bytes()
    for number, raw in enumerate(data.split(b"\n"), start=1):
        if not raw or (wanted and wanted.encode() not in raw):
            continue
        try:
            yield otlp_json.decode(raw.decode())
        except (json.JSONDecodeError, UnicodeDecodeError):
            # Lines are written whole: only a writer's death, or a write under way, leaves one that is not JSON.
            continue
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from error


def _order(span: SpanRecord) -> tuple[int, str, str]:
    return span.start_ns, span.name, span.span_id
