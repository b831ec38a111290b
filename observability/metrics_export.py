"""Makes metrics real: a Prometheus scrape endpoint on loopback, or OTLP to a Collector. Off unless asked for.

The scrape endpoint is one of the two listed exceptions to TLS: read-only, bound to 127.0.0.1, off by default.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricReader, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from prometheus_client import start_http_server

from observability import metrics, names

SCRAPE_HOST = "127.0.0.1"
EXPORT_INTERVAL_MS = 15_000
EXPORT_TIMEOUT_MS = 5_000
SHUTDOWN_MS = 2_000


@dataclass(frozen=True, slots=True)
class MetricsSettings:
    """Who measures, and where to."""

    service_name: str
    instance: str
    version: str
    scrape_port: int = 0
    """Port of the scrape endpoint on 127.0.0.1; 0: none."""
    otlp_endpoint: str = ""
    """OTLP gRPC endpoint, checked by `tracing.configure`; empty: none."""


class _State:
    lock = threading.Lock()
    provider: MeterProvider | None = None
    server: Any = None
    thread: threading.Thread | None = None


def configure(settings: MetricsSettings) -> None:
    """Begin to keep metrics, replacing an earlier configuration. Raises OSError when the port is taken."""
    shutdown()
    readers: list[MetricReader] = []
    server: Any = None
    thread: threading.Thread | None = None
    if settings.scrape_port:
        try:
            server, thread = start_http_server(settings.scrape_port, addr=SCRAPE_HOST)
        except OSError as error:
            raise OSError(f"metrics cannot listen on {SCRAPE_HOST}:{settings.scrape_port}: {error.strerror}") from error
        readers.append(PrometheusMetricReader())
    if settings.otlp_endpoint:
        insecure = urlsplit(settings.otlp_endpoint).scheme == "http"
        exporter = OTLPMetricExporter(endpoint=settings.otlp_endpoint, insecure=insecure)
        readers.append(PeriodicExportingMetricReader(exporter, EXPORT_INTERVAL_MS, EXPORT_TIMEOUT_MS))
    if not readers:
        return
    resource = Resource(
        {
            "service.name": settings.service_name,
            "service.namespace": "ostraka",
            "service.instance.id": settings.instance,
            "service.version": settings.version,
        },
        names.SCHEMA_URL,
    )
    provider = MeterProvider(readers, resource=resource, shutdown_on_exit=False)
    metrics.use_meter(provider.get_meter(metrics.SCOPE, settings.version))
    with _State.lock:
        _State.provider, _State.server, _State.thread = provider, server, thread


def shutdown() -> None:
    """Export what is left, bounded, and stop listening. May be called again."""
    with _State.lock:
        provider, server, thread = _State.provider, _State.server, _State.thread
        _State.provider = _State.server = _State.thread = None
    metrics.use_meter(None)
    if provider is not None:
        provider.shutdown(timeout_millis=SHUTDOWN_MS)
    if server is not None and thread is not None:
        server.shutdown()
        server.server_close()
        thread.join()
