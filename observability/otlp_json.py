"""SpanRecords to and from OTLP's JSON: one TracesData object per line.

The official protobuf JSON mapping with OTLP's two exceptions: trace and span ids in hex, enums as numbers
(https://opentelemetry.io/docs/specs/otlp/#json-protobuf-encoding). 64-bit integers are strings.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from observability import names
from observability.span_record import KIND_INTERNAL, SpanEvent, SpanLink, SpanRecord
from observability.spans import AttributeValue


def encode(records: Iterable[SpanRecord], resource: Mapping[str, AttributeValue], version: str = "") -> str:
    """One line, without its newline, holding all `records` under one resource."""
    scope_spans = {
        "scope": {"name": names.SCOPE, "version": version},
        "spans": [_span(record) for record in records],
        "schemaUrl": names.SCHEMA_URL,
    }
    data = {
        "resourceSpans": [
            {
                "resource": {"attributes": _attributes(resource)},
                "scopeSpans": [scope_spans],
                "schemaUrl": names.SCHEMA_URL,
            }
        ]
    }
    return json.dumps(data, separators=(",", ":"), ensure_ascii=False)


def decode(line: str) -> list[SpanRecord]:
    """The spans of one line. Raises ValueError when it is not TracesData."""
    try:
        data = json.loads(line)
        return [
            _record(span, _values(group.get("resource", {}).get("attributes", ())))
            for group in data["resourceSpans"]
            for scope in group.get("scopeSpans", ())
            for span in scope.get("spans", ())
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not OTLP TracesData: {error!r}") from error


def _span(record: SpanRecord) -> dict[str, Any]:
    span: dict[str, Any] = {
        "traceId": record.trace_id,
        "spanId": record.span_id,
        "flags": record.flags,
        "name": record.name,
        "kind": record.kind,
        "startTimeUnixNano": str(record.start_ns),
        "endTimeUnixNano": str(record.end_ns),
        "attributes": _attributes(record.attributes),
    }
    if record.parent_id:
        span["parentSpanId"] = record.parent_id
    if record.trace_state:
        span["traceState"] = record.trace_state
    if record.attributes_dropped:
        span["droppedAttributesCount"] = record.attributes_dropped
    if record.events:
        span["events"] = [
            {"timeUnixNano": str(event.time_ns), "name": event.name, "attributes": _attributes(event.attributes)}
            for event in record.events
        ]
    if record.links:
        span["links"] = [
            {"traceId": link.trace_id, "spanId": link.span_id, "attributes": _attributes(link.attributes)}
            for link in record.links
        ]
    if record.status or record.status_message:
        span["status"] = {"code": record.status, "message": record.status_message}
    return span


def _attributes(values: Mapping[str, AttributeValue]) -> list[dict[str, Any]]:
    return [{"key": key, "value": _any_value(value)} for key, value in values.items()]


def _any_value(value: AttributeValue) -> dict[str, Any]:
    if isinstance(value, bool):
        return {"boolValue": value}
    if isinstance(value, str):
        return {"stringValue": value}
    if isinstance(value, int):
        return {"intValue": str(value)}
    if isinstance(value, float):
        return {"doubleValue": value if value - value == 0 else _not_finite(value)}
    return {"arrayValue": {"values": [_any_value(item) for item in value]}}


def _not_finite(value: float) -> str:
    if value != value:
        return "NaN"
    return "Infinity" if value > 0 else "-Infinity"


def _values(attributes: Iterable[Mapping[str, Any]]) -> dict[str, AttributeValue]:
    return {item["key"]: _value(item.get("value", {})) for item in attributes}


def _value(any_value: Mapping[str, Any]) -> AttributeValue:
    for kind, value in any_value.items():
        if kind == "intValue":
            return int(value)
        if kind == "doubleValue":
            return float(value)
        if kind == "boolValue":
            return bool(value)
        if kind == "arrayValue":
            items: Sequence[Any] = [_value(item) for item in value.get("values", ())]
            return items
        return str(value)
    return ""


def _record(span: Mapping[str, Any], resource: Mapping[str, AttributeValue]) -> SpanRecord:
    status = span.get("status", {})
    return SpanRecord(
        trace_id=span["traceId"],
        span_id=span["spanId"],
        parent_id=span.get("parentSpanId", ""),
        name=span.get("name", ""),
        kind=int(span.get("kind", KIND_INTERNAL)),
        start_ns=int(span.get("startTimeUnixNano", 0)),
        end_ns=int(span.get("endTimeUnixNano", 0)),
        attributes=_values(span.get("attributes", ())),
        status=int(status.get("code", 0)),
        status_message=status.get("message", ""),
        flags=int(span.get("flags", 0)),
        trace_state=span.get("traceState", ""),
        events=tuple(
            SpanEvent(event.get("name", ""), int(event.get("timeUnixNano", 0)), _values(event.get("attributes", ())))
            for event in span.get("events", ())
        ),
        links=tuple(
            SpanLink(link["traceId"], link["spanId"], _values(link.get("attributes", ())))
            for link in span.get("links", ())
        ),
        attributes_dropped=int(span.get("droppedAttributesCount", 0)),
        service=str(resource.get("service.name", "")),
        instance=str(resource.get("service.instance.id", "")),
    )
