"""Samples: percentiles are order statistics, failures never look fast, records survive the disk."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.samples import Sample, failures_by_code, percentile, read_samples, write_samples


def sample(
    index: int = 0, *, code: str = "OK", intended_s: float = 1.0, sent_s: float = 1.5, done_s: float = 2
) -> Sample:
    return Sample(
        index=index,
        phase="burst",
        operation="search",
        question=3,
        intended_s=intended_s,
        sent_s=sent_s,
        done_s=done_s,
        code=code,
        trace_id="0af7651916cd43dd8448eb211c80319c",
    )


def test_latency_counts_from_the_intended_time() -> None:
    assert sample().latency_ms == pytest.approx(1_000)
    assert sample().service_ms == pytest.approx(500)
    assert sample().lag_ms == pytest.approx(500)


def test_a_failed_call_is_infinitely_slow() -> None:
    failed = sample(code="RESOURCE_EXHAUSTED")
    assert failed.latency_ms == math.inf
    assert failed.service_ms == math.inf


def test_nearest_rank() -> None:
    values = [float(value) for value in range(100, 0, -1)]
    assert percentile(values, 95) == 95
    assert percentile(values, 50) == 50
    assert percentile(values, 100) == 100
    assert percentile(values, 0.1) == 1
    assert percentile([7.0], 99) == 7


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=200), st.floats(0.01, 100))
def test_a_percentile_is_a_value_that_enough_values_do_not_exceed(values: list[float], percent: float) -> None:
    found = percentile(values, percent)
    assert found in values
    assert sum(value <= found for value in values) / len(values) * 100 >= percent - 1e-6
    assert sum(value < found for value in values) / len(values) * 100 < percent + 1e-6


@pytest.mark.parametrize(("values", "percent"), [([], 95), ([1.0], 0), ([1.0], 101)])
def test_undefined_percentiles_raise(values: list[float], percent: float) -> None:
    with pytest.raises(ValueError, match="not defined"):
        percentile(values, percent)


def test_records_survive_the_disk(tmp_path: Path) -> None:
    samples = [sample(0), sample(1, code="UNAVAILABLE")]
    write_samples(tmp_path / "samples.jsonl", samples)
    assert list(read_samples(tmp_path / "samples.jsonl")) == samples


@pytest.mark.parametrize("line", ["{", '{"index": 1}', "[]"])
def test_a_malformed_record_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "samples.jsonl"
    write_samples(path, [sample()])
    path.write_text(path.read_text(encoding="utf-8") + line + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"samples.jsonl:2: not a sample"):
        list(read_samples(path))


def test_failures_are_counted_by_code() -> None:
    samples = [sample(0), sample(1, code="A"), sample(2, code="B"), sample(3, code="B")]
    assert failures_by_code(samples) == {"B": 2, "A": 1}
