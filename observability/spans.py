"""Spans for services: a thin, typed API that cannot fail a request.

Uses the OpenTelemetry API only. Until `tracing.configure` ran, spans are no-ops that still carry the context
received from the caller onwards. W3C trace context: https://www.w3.org/TR/trace-context/
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import (
    INVALID_SPAN,
    Link,
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    Tracer,
    TracerProvider,
    set_span_in_context,
)

from observability import names

AttributeValue = str | bool | int | float | Sequence[str] | Sequence[bool] | Sequence[int] | Sequence[float]
Attributes = Mapping[str, AttributeValue]
Parent = Span | SpanContext | str | None
"""A span, its context, a traceparent header ("" or malformed: none), or None for the current span."""

_HEX = frozenset("0123456789abcdef")


class _Tracing:
    """The tracer in use and the count of telemetry's own failures."""

    tracer: Tracer = trace.get_tracer(names.SCOPE, schema_url=names.SCHEMA_URL)
    failures: int = 0


def use_provider(provider: TracerProvider | None) -> None:
    """Make spans with `provider`; None returns to the global one. Called by `tracing`."""
    source = provider or trace.get_tracer_provider()
    _Tracing.tracer = source.get_tracer(names.SCOPE, schema_url=names.SCHEMA_URL)


def telemetry_failures() -> int:
    """How often telemetry itself failed; requests went on without the span."""
    return _Tracing.failures


def start_span(
    name: str,
    kind: SpanKind = SpanKind.INTERNAL,
    attributes: Attributes | None = None,
    parent: Parent = None,
    *,
    links: Sequence[SpanContext] = (),
) -> Span:
    """A span that the caller ends with `.end()`. It is not made current. Never raises."""
    try:
        return _Tracing.tracer.start_span(
            name,
            context=context_of(parent),
            kind=kind,
            attributes=attributes,
            links=[Link(link) for link in links],
            record_exception=False,
            set_status_on_exception=False,
        )
    except Exception:
        # Telemetry can never fail a request: go on without this span.
        _Tracing.failures += 1
        return INVALID_SPAN


@contextmanager
def span(
    name: str,
    kind: SpanKind = SpanKind.INTERNAL,
    attributes: Attributes | None = None,
    parent: Parent = None,
    *,
    links: Sequence[SpanContext] = (),
) -> Iterator[Span]:
    """A span around the block, current within it. An exception, cancellation included, becomes its status."""
    made = start_span(name, kind, attributes, parent, links=links)
    try:
        with use_span(made):
            yield made
    except BaseException as error:
        record_error(made, error)
        raise
    finally:
        end_span(made)


@contextmanager
def use_span(held: Span) -> Iterator[None]:
    """Make a held span current within the block, without ending it."""
    token = otel_context.attach(set_span_in_context(held))
    try:
        yield
    finally:
        otel_context.detach(token)


def end_span(held: Span, end_ns: int | None = None) -> None:
    """End a span; never raises. `end_ns`: Unix time in nanoseconds, None for now."""
    try:
        held.end(end_ns)
    except Exception:
        # Telemetry can never fail a request.
        _Tracing.failures += 1


def record_error(held: Span, error: BaseException) -> None:
    """Mark a span as failed by `error`: status, `error.type` and, for cancellation, the outcome."""
    if not held.is_recording():
        return
    kind = type(error).__name__
    held.set_attribute(names.ERROR_TYPE, kind)
    if kind in ("CancelledError", "GeneratorExit"):
        held.set_attribute(names.OUTCOME, names.OUTCOME_CANCELLED)
    held.set_status(Status(StatusCode.ERROR, str(error) or kind))


def current_span() -> Span:
    """The span of the block under way; a no-op span when there is none."""
    return trace.get_current_span()


def current_trace_id() -> str:
    """The current trace id as 32 hex digits, "" outside any trace."""
    found = trace.get_current_span().get_span_context()
    return f"{found.trace_id:032x}" if found.is_valid else ""


def traceparent(held: Span | None = None) -> str:
    """W3C traceparent of a span (None: the current one), "" when there is none."""
    found = (held or trace.get_current_span()).get_span_context()
    return format_traceparent(found) if found.is_valid else ""


def format_traceparent(found: SpanContext) -> str:
    """The header's text for a valid span context."""
    return f"00-{found.trace_id:032x}-{found.span_id:016x}-{found.trace_flags & 1:02x}"


def parse_traceparent(text: str) -> SpanContext | None:
    """The remote span context of a traceparent header; None when it is not one."""
    parts = text.split("-")
    if len(parts) < 4 or [len(part) for part in parts[:4]] != [2, 32, 16, 2] or not _HEX.issuperset("".join(parts[:4])):
        return None
    if parts[0] == "ff" or (parts[0] == "00" and len(parts) != 4):
        return None
    found = SpanContext(int(parts[1], 16), int(parts[2], 16), is_remote=True, trace_flags=TraceFlags(int(parts[3], 16)))
    return found if found.is_valid else None


def context_of(parent: Parent) -> Context | None:
    """The OpenTelemetry context that makes `parent` the parent; None means the current context."""
    if not parent:
        return None
    if isinstance(parent, Span):
        return set_span_in_context(parent)
    found = parse_traceparent(parent) if isinstance(parent, str) else parent
    return set_span_in_context(NonRecordingSpan(found)) if found is not None and found.is_valid else None
