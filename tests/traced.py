"""Record spans of this process in a directory and read them back."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from observability import tracing
from observability.span_record import SpanRecord
from observability.trace_files import read_spans
from observability.tracing import TracingSettings


class Recording:
    """The spans exported so far."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def spans(self) -> list[SpanRecord]:
        """All finished spans."""
        assert tracing.flush(30)
        return read_spans(self.directory)

    def named(self, name: str, kind: int = 0) -> list[SpanRecord]:
        """Those of this name, and of this OTLP kind unless 0."""
        return [span for span in self.spans() if span.name == name and kind in (0, span.kind)]


@contextlib.contextmanager
def recording(directory: Path, sample_ratio: float = 1.0, queue_spans_max: int = 10_000) -> Iterator[Recording]:
    """Tracing to files in `directory` within the block."""
    tracing.configure(
        TracingSettings("test", "0", "1.2.3", directory, sample_ratio=sample_ratio, queue_spans_max=queue_spans_max)
    )
    try:
        yield Recording(directory)
    finally:
        tracing.shutdown()
