"""One finished span as plain data: what the exporter writes and the readers of trace files get."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from observability.spans import AttributeValue

KIND_INTERNAL, KIND_SERVER, KIND_CLIENT, KIND_PRODUCER, KIND_CONSUMER = 1, 2, 3, 4, 5
"""OTLP's numbers for span kinds."""
STATUS_UNSET, STATUS_OK, STATUS_ERROR = 0, 1, 2


@dataclass(frozen=True, slots=True)
class SpanEvent:
    """Something that happened at one moment of a span."""

    name: str
    time_ns: int
    attributes: Mapping[str, AttributeValue]


@dataclass(frozen=True, slots=True)
class SpanLink:
    """Another span this one belongs with."""

    trace_id: str
    span_id: str
    attributes: Mapping[str, AttributeValue] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SpanRecord:
    """Ids in lower-case hex (32 and 16 digits), times in Unix nanoseconds, kind and status in OTLP's numbers."""

    trace_id: str
    span_id: str
    parent_id: str
    """Empty for a root span."""
    name: str
    kind: int
    start_ns: int
    end_ns: int
    attributes: Mapping[str, AttributeValue]
    status: int = STATUS_UNSET
    status_message: str = ""
    flags: int = 1
    trace_state: str = ""
    events: tuple[SpanEvent, ...] = ()
    links: tuple[SpanLink, ...] = ()
    attributes_dropped: int = 0
    service: str = ""
    instance: str = ""

    @property
    def duration_ms(self) -> float:
        """Length in milliseconds."""
        return (self.end_ns - self.start_ns) / 1e6
