"""Makes spans real: sampling, the export queue, and the two exporters. The only module that knows the SDK.

Default: OTLP-JSON lines in `traces_dir/<service>-<instance>.jsonl`, the shape that Jaeger's UI uploads. With an
OTLP endpoint, gRPC to Jaeger or a Collector instead. Export runs on its own thread behind a bounded queue; it
never blocks or fails a request, and what does not fit is dropped and counted.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.util.types import AnyValue

from observability import names, otlp_json, spans
from observability.drop_queue import DropQueue
from observability.span_file import SpanFile
from observability.span_record import SpanEvent, SpanLink, SpanRecord
from observability.spans import AttributeValue

BATCH_SPANS_MAX = 512
FLUSH_INTERVAL_S = 0.2
"""A finished span is on disk at the latest this long after its end."""
SHUTDOWN_S = 3.0
COLLECTOR_TIMEOUT_S = 5.0
"""For one batch; a Collector that is away costs the batch."""
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass(frozen=True, slots=True)
class TracingSettings:
    """Who traces, and where to."""

    service_name: str
    instance: str
    version: str
    traces_dir: Path
    sample_ratio: float = 1.0
    """Share of root traces kept; a caller's sampled flag wins."""
    otlp_endpoint: str = ""
    """OTLP gRPC endpoint, https:// or, on loopback only, http://; empty: files."""
    file_bytes_max: int = 64 * 1024 * 1024
    queue_spans_max: int = 16_384


class _QueueProcessor(SpanProcessor):
    """Puts finished spans on the queue."""

    def __init__(self, export: Callable[[list[ReadableSpan]], None], spans_max: int) -> None:
        self.queue: DropQueue[ReadableSpan] = DropQueue(
            "ostraka-spans", export, items_max=spans_max, batch_max=BATCH_SPANS_MAX, interval_s=FLUSH_INTERVAL_S
        )

    def on_end(self, span: ReadableSpan) -> None:
        if span.context is not None and span.context.trace_flags.sampled:
            self.queue.offer(span)

    def shutdown(self) -> None:
        self.queue.close(SHUTDOWN_S)

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self.queue.flush(timeout_millis / 1_000)


class _State:
    lock = threading.Lock()
    provider: TracerProvider | None = None
    processor: _QueueProcessor | None = None
    dropped_before: int = 0


def configure(settings: TracingSettings) -> None:
    """Begin to record spans, replacing an earlier configuration.

    Raises ValueError for an endpoint that would send spans in the clear to another machine, OSError when the
    trace directory cannot be written.
    """
    resource = {
        "service.name": settings.service_name,
        "service.namespace": "ostraka",
        "service.instance.id": settings.instance,
        "service.version": settings.version,
        "telemetry.sdk.language": "python",
        "telemetry.sdk.name": "opentelemetry",
    }
    export = _to_collector(settings) if settings.otlp_endpoint else _to_file(settings, resource)
    shutdown()
    with _State.lock:
        processor = _QueueProcessor(export, settings.queue_spans_max)
        provider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(settings.sample_ratio)),
            resource=Resource(resource, names.SCHEMA_URL),
            shutdown_on_exit=False,
        )
        provider.add_span_processor(processor)
        _State.provider, _State.processor = provider, processor
        spans.use_provider(provider)
        if isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
            trace.set_tracer_provider(provider)


def shutdown() -> None:
    """Export what is queued, bounded by SHUTDOWN_S, and stop recording. May be called again."""
    with _State.lock:
        provider, processor = _State.provider, _State.processor
        _State.provider = _State.processor = None
        spans.use_provider(None if provider is None else trace.NoOpTracerProvider())
        if provider is not None and processor is not None:
            provider.shutdown()
            _State.dropped_before += processor.queue.dropped


def flush(timeout_s: float = SHUTDOWN_S) -> bool:
    """Wait until every finished span is exported; False when that took too long."""
    processor = _State.processor
    return processor is None or processor.queue.flush(timeout_s)


def spans_dropped() -> int:
    """Finished spans of this process that were never exported."""
    processor = _State.processor
    return _State.dropped_before + (processor.queue.dropped if processor is not None else 0)


def _to_file(settings: TracingSettings, resource: dict[str, str]) -> Callable[[list[ReadableSpan]], None]:
    file = SpanFile(settings.traces_dir, f"{settings.service_name}-{settings.instance}", settings.file_bytes_max)
    failing = False

    def export(batch: list[ReadableSpan]) -> None:
        nonlocal failing
        try:
            file.append(otlp_json.encode(map(record_of, batch), resource, settings.version))
        except OSError as error:
            if not failing:
                sys.stderr.write(f'{{"level":"error","logger":"tracing","event":"spans are dropped: {error}"}}\n')
            failing = True
            raise
        failing = False

    return export


def _to_collector(settings: TracingSettings) -> Callable[[list[ReadableSpan]], None]:
    address = urlsplit(settings.otlp_endpoint)
    if address.scheme not in ("http", "https") or not address.hostname:
        raise ValueError(f"OTLP endpoint {settings.otlp_endpoint!r} must be https://HOST:PORT or http://127.0.0.1:PORT")
    if address.scheme == "http" and address.hostname not in LOOPBACK:
        raise ValueError(
            f"OTLP endpoint {settings.otlp_endpoint!r} would send traces in the clear; "
            "use https, or http to a Collector on this machine"
        )
    exporter = OTLPSpanExporter(
        endpoint=settings.otlp_endpoint, insecure=address.scheme == "http", timeout=COLLECTOR_TIMEOUT_S
    )

    def export(batch: list[ReadableSpan]) -> None:
        if exporter.export(batch) is not SpanExportResult.SUCCESS:
            raise ConnectionError(f"{settings.otlp_endpoint} took no spans")

    return export


def record_of(span: ReadableSpan) -> SpanRecord:
    """The SDK's finished span as plain data."""
    context, status = span.context, span.status
    assert context is not None
    return SpanRecord(
        trace_id=f"{context.trace_id:032x}",
        span_id=f"{context.span_id:016x}",
        parent_id=f"{span.parent.span_id:016x}" if span.parent is not None else "",
        name=span.name,
        kind=span.kind.value + 1,
        start_ns=span.start_time or 0,
        end_ns=span.end_time or 0,
        attributes=_plain(span.attributes),
        status=status.status_code.value,
        status_message=status.description or "",
        flags=int(context.trace_flags) | (0x300 if span.parent is not None and span.parent.is_remote else 0x100),
        trace_state=context.trace_state.to_header(),
        events=tuple(SpanEvent(event.name, event.timestamp, _plain(event.attributes)) for event in span.events),
        links=tuple(
            SpanLink(f"{link.context.trace_id:032x}", f"{link.context.span_id:016x}", _plain(link.attributes))
            for link in span.links
        ),
        attributes_dropped=span.dropped_attributes,
    )


def _plain(attributes: Mapping[str, AnyValue] | None) -> dict[str, AttributeValue]:
    """What services may set (scalars and lists of scalars) as it is; anything else as text."""
    kept: dict[str, AttributeValue] = {}
    for key, value in (attributes or {}).items():
        if isinstance(value, str | bool | int | float):
            kept[key] = value
        elif isinstance(value, Sequence) and not isinstance(value, bytes):
            kept[key] = [str(item) for item in value] if _mixed(value) else cast(AttributeValue, tuple(value))
        else:
            kept[key] = str(value)
    return kept


def _mixed(values: Sequence[AnyValue]) -> bool:
    return not all(isinstance(value, str | bool | int | float) for value in values)
