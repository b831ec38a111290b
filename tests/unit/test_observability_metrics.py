"""Metrics: nothing is kept unless asked for, a scrape shows what was recorded, and a broken reader hurts nobody."""

from __future__ import annotations

import socket
import threading
import urllib.request
from collections.abc import Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families

from observability import metrics, metrics_export
from observability.metrics import Metric
from observability.metrics_export import MetricsSettings

SHUTDOWN_WITHIN_S = 30.0
"""Ten times its limit: only a hang takes longer."""


@pytest.fixture
def port() -> Iterator[int]:
    """A scrape endpoint that is closed afterwards."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free = int(probe.getsockname()[1])
    metrics_export.configure(MetricsSettings("shard", "n1", "0.1.0", scrape_port=free))
    yield free
    metrics_export.shutdown()


def scrape(port: int) -> dict[str, list[tuple[dict[str, str], float]]]:
    """Samples by name, as Prometheus's own parser reads them."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as reply:
        text = reply.read().decode()
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((dict(sample.labels), sample.value))
    return found


def test_nothing_is_kept_and_nothing_listens_unless_asked_for() -> None:
    metrics_export.configure(MetricsSettings("shard", "n1", "0.1.0"))
    metrics.record(metrics.QUEUE_WAIT, 0.1)
    metrics.add(metrics.WRITES)
    metrics_export.shutdown()


def test_a_scrape_shows_counts_buckets_and_readings(port: int) -> None:
    metrics.add(metrics.WRITES, 3, {"status": "ok"})
    metrics.record(metrics.QUEUE_WAIT, 0.004, {"collection": "docs"})
    forget = metrics.observe(metrics.ROWS, lambda: [(7.0, {"state": "live"}), (2.0, {"state": "dead"})])
    found = scrape(port)
    forget()
    (_, writes) = next(entry for entry in found["ostraka_shard_writes_total"] if entry[0]["status"] == "ok")
    assert writes == 3
    buckets = {labels["le"]: value for labels, value in found["ostraka_shard_queue_wait_seconds_bucket"]}
    assert buckets["0.0025"] == 0
    assert buckets["0.005"] == 1
    rows = {labels["state"]: value for labels, value in found["ostraka_replica_rows"]}
    assert rows == {"live": 7, "dead": 2}
    assert "ostraka_replica_rows" not in scrape(port)


def test_a_reader_that_fails_hides_no_other(port: int, capsys: pytest.CaptureFixture[str]) -> None:
    def broken() -> list[tuple[float, dict[str, str]]]:
        raise RuntimeError("no")

    ends = [metrics.observe(metrics.SEGMENTS, broken), metrics.observe(metrics.SEGMENTS, lambda: [(4.0, {})])]
    found = scrape(port)
    for end in ends:
        end()
    assert [value for _, value in found["ostraka_replica_segments"]] == [4]
    assert "cannot be read" in capsys.readouterr().err


def test_a_port_in_use_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        number = taken.getsockname()[1]
        with pytest.raises(OSError, match=f"127.0.0.1:{number}"):
            metrics_export.configure(MetricsSettings("shard", "n1", "0.1.0", scrape_port=number))


def test_a_collector_that_never_answers_fails_nothing_and_ends_in_time() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        metrics_export.configure(MetricsSettings("shard", "n1", "0.1.0", otlp_endpoint=endpoint))
        metrics.add(metrics.WRITES, 1, {"status": "ok"})
        metrics.record(metrics.QUEUE_WAIT, 0.1)
        ending = threading.Thread(target=metrics_export.shutdown)
        ending.start()
        ending.join(SHUTDOWN_WITHIN_S)
        assert not ending.is_alive()


def test_labels_of_a_wrong_kind_do_not_reach_the_caller(port: int) -> None:
    metrics.add(metrics.WRITES, 1, {"status": object()})  # type: ignore[dict-item]  # a defect in a caller
    metrics.record(metrics.QUEUE_WAIT, float("nan"))
    scrape(port)


@pytest.mark.parametrize("metric", metrics.DECLARED, ids=lambda metric: metric.name)
def test_every_metric_is_declared_whole(metric: Metric) -> None:
    assert metric.unit
    assert metric.description
    assert bool(metric.buckets) == (metric.kind is metrics.Kind.HISTOGRAM)
    assert list(metric.buckets) == sorted(metric.buckets)


def test_every_metric_is_listed_once() -> None:
    named = [value for value in vars(metrics).values() if isinstance(value, Metric)]
    assert sorted(m.name for m in named) == sorted(m.name for m in metrics.DECLARED)
    assert len({m.name for m in named}) == len(named)
