"""Metrics, declared once: name, unit, meaning, and for histograms the bounds of the buckets.

Services record through `add` and `record`, or register an `observe` callback that is asked when somebody scrapes. Until
`metrics_export.configure` was called nothing is kept and a record costs one look-up. No call here raises: telemetry
can never fail a request.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import ClassVar, Final

from opentelemetry.metrics import CallbackOptions, Counter, Histogram, Meter, NoOpMeter, Observation

Attributes = Mapping[str, str | int | float | bool]
Reading = tuple[float, Attributes]
"""A value and the attributes that say whose it is."""

SCOPE: Final = "ostraka"
SECONDS_BUCKETS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""0.1 s is the limit a Search has to meet, so it is a bound and no estimate is needed to see it broken."""
COUNT_BUCKETS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Kind(Enum):
    """How a metric is fed."""

    COUNTER = "counter"
    HISTOGRAM = "histogram"
    OBSERVED = "observed"
    """A gauge, read by callback."""
    OBSERVED_TOTAL = "observed total"
    """A count that only grows, read by callback."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One declared metric."""

    name: str
    unit: str
    description: str
    kind: Kind
    buckets: tuple[float, ...] = ()


RPC_DURATION = Metric(
    "rpc.server.duration", "s", "Time from a call's arrival to its end", Kind.HISTOGRAM, SECONDS_BUCKETS
)
QUEUE_WAIT = Metric(
    "ostraka.shard.queue_wait", "s", "Time a search waited for a thread", Kind.HISTOGRAM, SECONDS_BUCKETS
)
SEARCH_DURATION = Metric(
    "ostraka.shard.search.duration", "s", "Time a search took in its thread", Kind.HISTOGRAM, SECONDS_BUCKETS
)
SEARCH_BATCH = Metric("ostraka.shard.search.batch", "{query}", "Queries in one search", Kind.HISTOGRAM, COUNT_BUCKETS)
WRITES = Metric("ostraka.shard.writes", "{batch}", "Write batches by status", Kind.COUNTER)
LEGS = Metric("ostraka.router.legs", "{leg}", "Further asking by role: hedge or retry", Kind.COUNTER)
SHARDS_UNAVAILABLE = Metric(
    "ostraka.router.shards_unavailable", "{shard}", "Shards missing from answers and refusals", Kind.COUNTER
)
QUERY_CACHE = Metric("ostraka.router.query_cache", "{query}", "Query texts by outcome: hit or miss", Kind.COUNTER)
SPANS_DROPPED = Metric("ostraka.spans.dropped", "{span}", "Spans never exported", Kind.OBSERVED_TOTAL)
ROWS = Metric("ostraka.replica.rows", "{row}", "Rows by state: live or dead", Kind.OBSERVED)
DELTA_ROWS = Metric("ostraka.replica.delta_rows", "{row}", "Live rows that no segment holds yet", Kind.OBSERVED)
SEGMENTS = Metric("ostraka.replica.segments", "{segment}", "Sealed segments", Kind.OBSERVED)
BUILDS = Metric("ostraka.replica.builds", "{segment}", "Segments built since the start", Kind.OBSERVED_TOTAL)
MEMORY = Metric("ostraka.replica.memory", "By", "Memory by part; mapped files apart", Kind.OBSERVED)
RECALL_CANARY = Metric(
    "ostraka.replica.recall_canary", "1", "Mean recall@k of live queries run again exactly", Kind.OBSERVED
)
CANARY_QUERIES = Metric("ostraka.replica.canary_queries", "{query}", "Queries that mean is over", Kind.OBSERVED)
LIST_IMBALANCE = Metric(
    "ostraka.replica.list_imbalance", "1", "Mean squared list length over squared mean; 1 is even", Kind.OBSERVED
)
QUANTIZATION_DRIFT = Metric(
    "ostraka.replica.quantization_drift", "1", "Squared residual of recent rows over that at training", Kind.OBSERVED
)
DAMAGE_FOUND = Metric(
    "ostraka.replica.damage_found", "{item}", "Rows and files found damaged since the start", Kind.OBSERVED_TOTAL
)
SCRUBBED_AGE = Metric(
    "ostraka.replica.scrubbed_age", "s", "Since the last complete check of rows and files", Kind.OBSERVED
)
STATISTICS_AGE = Metric(
    "ostraka.replica.lexical_statistics_age", "s", "Age of the oldest corpus statistics BM25 uses", Kind.OBSERVED
)
SERVING = Metric("ostraka.replica.serving", "1", "1 while the replica serves reads and writes", Kind.OBSERVED)

DECLARED: Final = (
    RPC_DURATION,
    QUEUE_WAIT,
    SEARCH_DURATION,
    SEARCH_BATCH,
    WRITES,
    LEGS,
    SHARDS_UNAVAILABLE,
    QUERY_CACHE,
    SPANS_DROPPED,
    ROWS,
    DELTA_ROWS,
    SEGMENTS,
    BUILDS,
    MEMORY,
    RECALL_CANARY,
    CANARY_QUERIES,
    LIST_IMBALANCE,
    QUANTIZATION_DRIFT,
    DAMAGE_FOUND,
    SCRUBBED_AGE,
    STATISTICS_AGE,
    SERVING,
)


class _State:
    lock = threading.Lock()
    counters: Mapping[str, Counter] = {}
    histograms: Mapping[str, Histogram] = {}
    callbacks: ClassVar[dict[str, list[Callable[[], Iterable[Reading]]]]] = {}


def use_meter(meter: Meter | None) -> None:
    """Create every declared metric with `meter`; None: forget them and keep nothing."""
    meter = meter or NoOpMeter(SCOPE)
    counters: dict[str, Counter] = {}
    histograms: dict[str, Histogram] = {}
    for metric in DECLARED:
        about = {"unit": metric.unit, "description": metric.description}
        if metric.kind is Kind.COUNTER:
            counters[metric.name] = meter.create_counter(metric.name, **about)
        elif metric.kind is Kind.HISTOGRAM:
            histograms[metric.name] = meter.create_histogram(
                metric.name, **about, explicit_bucket_boundaries_advisory=metric.buckets
            )
        elif metric.kind is Kind.OBSERVED:
            meter.create_observable_gauge(metric.name, [_asker(metric)], **about)
        else:
            meter.create_observable_counter(metric.name, [_asker(metric)], **about)
    with _State.lock:
        _State.counters, _State.histograms = counters, histograms


def add(metric: Metric, amount: int = 1, attributes: Attributes | None = None) -> None:
    """Count `amount` more."""
    counter = _State.counters.get(metric.name)
    if counter is not None:
        counter.add(amount, attributes)


def record(metric: Metric, value: float, attributes: Attributes | None = None) -> None:
    """One value of a histogram."""
    histogram = _State.histograms.get(metric.name)
    if histogram is not None:
        histogram.record(value, attributes)


def observe(metric: Metric, read: Callable[[], Iterable[Reading]]) -> Callable[[], None]:
    """Ask `read` at every scrape, in the scraper's thread; the result ends that."""
    assert metric.kind in (Kind.OBSERVED, Kind.OBSERVED_TOTAL), "only observed metrics are read by callback"
    with _State.lock:
        _State.callbacks.setdefault(metric.name, []).append(read)

    def forget() -> None:
        with _State.lock:
            kept = _State.callbacks.get(metric.name, [])
            if read in kept:
                kept.remove(read)

    return forget


def _asker(metric: Metric) -> Callable[[CallbackOptions], Iterable[Observation]]:
    def ask(_options: CallbackOptions) -> list[Observation]:
        with _State.lock:
            readers = list(_State.callbacks.get(metric.name, ()))
        found: list[Observation] = []
        for read in readers:
            try:
                found += [Observation(value, dict(attributes)) for value, attributes in read()]
            except Exception as error:
                # One broken reader must not hide the others.
                event = f"{metric.name} cannot be read: {type(error).__name__}"
                sys.stderr.write(json.dumps({"level": "error", "logger": "metrics", "event": event}) + "\n")
        return found

    return ask
