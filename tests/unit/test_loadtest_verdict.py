"""Verdicts: met, breached and undecided are told apart, and the report says "observed"."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from loadtest.arrivals import Phase
from loadtest.report import GeneratorHealth, Run, as_json, as_text, schedule_lag_ms_p99
from loadtest.samples import MISSING, Sample
from loadtest.slo import Load, Objective, Slo
from loadtest.verdict import Finding, Outcome, Verdict, complete, judge
from loadtest.workload import Operation, PlannedCall

PHASES = (Phase(name="baseline", duration_s=10, rate_per_s=10), Phase(name="burst", duration_s=10, rate_per_s=10))
GOAL = Objective(phase="burst", operation=Operation.SEARCH, percentile=95, latency_ms_max=50)


def burst(latencies_ms: list[float], *, lag_ms: float = 0.0, code: str = "OK") -> list[Sample]:
    """Samples of the burst, the last due one second before its end."""
    samples = []
    for index, latency_ms in enumerate(latencies_ms):
        intended_s = 10 + 9 * index / len(latencies_ms)
        sent_s = intended_s + lag_ms / 1e3
        samples.append(
            Sample(
                index=index,
                phase="burst",
                operation="search",
                question=0,
                intended_s=intended_s,
                sent_s=sent_s,
                done_s=sent_s + latency_ms / 1e3,
                code=code,
            )
        )
    return samples


def finding(samples: list[Sample], goal: Objective = GOAL) -> Finding:
    return judge([goal], PHASES, samples).findings[0]


def test_met_when_the_percentile_is_at_most_the_limit() -> None:
    found = finding(burst([10.0] * 95 + [500.0] * 5))
    assert (found.outcome, found.samples, found.failed) == (Outcome.MET, 100, 0)
    assert found.observed_ms == pytest.approx(10)


def test_breached_when_one_call_too_many_is_slow() -> None:
    found = finding(burst([10.0] * 94 + [500.0] * 6))
    assert found.outcome is Outcome.BREACHED
    assert found.observed_ms == pytest.approx(500)


def test_calls_refused_at_once_do_not_make_the_percentile_better() -> None:
    samples = burst([10.0] * 90) + burst([0.1] * 10, code="RESOURCE_EXHAUSTED")
    lenient = Objective(
        phase="burst", operation=Operation.SEARCH, percentile=95, latency_ms_max=50, failures_ratio_max=0.2
    )
    assert finding(samples, lenient).outcome is Outcome.BREACHED
    assert finding(samples, lenient).observed_ms == math.inf
    assert finding(samples).reason == "10 of 100 calls failed"


def test_too_few_samples_decide_nothing() -> None:
    found = finding(burst([10.0] * 99))
    assert found.outcome is Outcome.UNDECIDED
    assert found.reason == "99 samples, 100 needed for p95"
    assert finding([]).outcome is Outcome.UNDECIDED
    assert math.isnan(finding([]).observed_ms)


def test_the_generators_own_lag_is_not_blamed_on_the_mesh() -> None:
    found = finding(burst([20.0] * 100, lag_ms=40))
    assert found.outcome is Outcome.UNDECIDED
    assert "generator's lag" in found.reason
    assert finding(burst([60.0] * 100, lag_ms=40)).outcome is Outcome.BREACHED


def test_a_flattened_burst_is_not_called_met() -> None:
    generous = Objective(phase="burst", operation=Operation.SEARCH, percentile=95, latency_ms_max=10_000)
    found = finding(burst([20.0] * 100, lag_ms=2_000), generous)
    assert found.outcome is Outcome.UNDECIDED
    assert "flattened" in found.reason


def test_the_worst_finding_is_the_verdict() -> None:
    def of(*outcomes: Outcome) -> Outcome:
        return Verdict(
            tuple(
                Finding(objective=GOAL, samples=1, failed=0, observed_ms=1, outcome=outcome, reason="")
                for outcome in outcomes
            )
        ).outcome

    assert of(Outcome.MET, Outcome.MET) is Outcome.MET
    assert of(Outcome.MET, Outcome.UNDECIDED) is Outcome.UNDECIDED
    assert of(Outcome.UNDECIDED, Outcome.BREACHED, Outcome.MET) is Outcome.BREACHED


def test_a_call_without_a_record_counts_as_failed() -> None:
    calls = [PlannedCall(i, 10 + i / 100, "burst", Operation.SEARCH, 0) for i in range(101)]
    whole = complete(calls, burst([10.0] * 100))
    assert len(whole) == 101
    assert whole[100].code == MISSING
    assert whole[100].latency_ms == math.inf


def test_foreign_and_double_records_are_refused() -> None:
    calls = [PlannedCall(0, 10, "burst", Operation.SEARCH, 0)]
    with pytest.raises(ValueError, match="do not belong"):
        complete(calls, burst([10.0] * 2))
    with pytest.raises(ValueError, match="do not belong"):
        complete(calls, burst([10.0]) * 2)


def run_of(samples: list[Sample]) -> Run:
    return Run(
        slo=Slo(Path("slo.toml"), Load(), PHASES, (GOAL,)),
        phases=PHASES,
        target="127.0.0.1:7402",
        directory="reports/x",
        samples=tuple(samples),
        verdict=judge([GOAL], PHASES, samples),
        generator=GeneratorHealth(
            cpu_share=0.25, inflight_peak=7, schedule_lag_ms_p99=schedule_lag_ms_p99(samples), versions={}
        ),
    )


def test_the_report_names_percentile_sample_size_and_limit_and_claims_no_confidence() -> None:
    text = as_text(run_of(burst([12.3] * 120)))
    line = next(line for line in text.splitlines() if line.startswith("p95 search in burst"))
    assert line.split() == ["p95", "search", "in", "burst", "120", "12.3", "ms", "50.0", "ms", "met"]
    assert "observed" in text
    assert "not a confidence" in text
    assert "CPU 25% of one core" in text


def test_the_report_of_a_breach_shows_failures_by_code() -> None:
    text = as_text(run_of(burst([12.3] * 100, code="UNAVAILABLE")))
    assert "SLO BREACHED, observed in this run" in text
    assert "failed: 100 x UNAVAILABLE" in text


def test_the_json_report_holds_no_infinities() -> None:
    report = as_json(run_of(burst([1.0] * 100, code="UNAVAILABLE")))
    again = json.loads(json.dumps(report, allow_nan=False))
    assert again["verdict"] == "breached"
    assert again["objectives"][0]["observed_ms"] is None
    assert again["failures"] == {"UNAVAILABLE": 100}
