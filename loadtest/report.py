"""A finished run as text for people and as JSON for programs. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from loadtest.arrivals import Phase
from loadtest.samples import Sample, failures_by_code, percentile
from loadtest.slo import Slo
from loadtest.verdict import Outcome, Verdict

PERCENTS = (50.0, 95.0, 99.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratorHealth:
    """How the load generator itself fared."""

    cpu_share: float
    """CPU seconds per second of one core, this process only."""
    inflight_peak: int
    schedule_lag_ms_p99: float
    """How late calls left, from all samples."""
    versions: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Everything a report says about a run."""

    slo: Slo
    phases: tuple[Phase, ...]
    target: str
    directory: str
    samples: tuple[Sample, ...]
    verdict: Verdict
    generator: GeneratorHealth


def as_text(run: Run) -> str:
    """The report for a terminal; at most 120 columns."""
    load = run.slo.load
    duration_s = sum(phase.duration_s for phase in run.phases)
    lines = [
        f"Load test of collection {load.collection!r} at {run.target}: {len(run.samples):,} calls in {duration_s:g} s,"
        f" {load.arrivals} arrivals, seed {load.seed}, level {load.consistency}.",
        "Latency counts from the intended time of each call; percentiles are of raw samples.",
        "",
        *_latency_table(run),
        "",
        *_objective_table(run.verdict),
        "",
        *_failure_lines(run.samples),
        f"generator: CPU {run.generator.cpu_share:.0%} of one core, schedule lag p99"
        f" {run.generator.schedule_lag_ms_p99:.1f} ms, at most {run.generator.inflight_peak} calls in flight",
        f"raw samples: {run.directory}/samples.jsonl",
        f"verdict: {_VERDICTS[run.verdict.outcome]}",
    ]
    return "\n".join(lines)


_VERDICTS: Mapping[Outcome, str] = {
    Outcome.MET: "every objective was observed to be met in this run (one run: an observation, not a confidence)",
    Outcome.BREACHED: "SLO BREACHED, observed in this run",
    Outcome.UNDECIDED: "UNDECIDED: this run does not show whether the objectives are met",
}


def as_json(run: Run) -> dict[str, Any]:
    """The report as JSON-ready values; what is infinite or undefined is null."""
    return {
        "collection": run.slo.load.collection,
        "target": run.target,
        "seed": run.slo.load.seed,
        "arrivals": str(run.slo.load.arrivals),
        "consistency": run.slo.load.consistency,
        "phases": [asdict(phase) for phase in run.phases],
        "latency": [
            {key: _number(value) if isinstance(value, float) else value for key, value in row.items()}
            for row in latency_rows(run.samples, run.phases)
        ],
        "objectives": [
            {
                **asdict(finding.objective),
                "samples": finding.samples,
                "failed": finding.failed,
                "observed_ms": _number(finding.observed_ms),
                "outcome": str(finding.outcome),
                "reason": finding.reason,
            }
            for finding in run.verdict.findings
        ],
        "failures": failures_by_code(run.samples),
        "generator": asdict(run.generator),
        "verdict": str(run.verdict.outcome),
    }


def latency_rows(samples: Sequence[Sample], phases: Sequence[Phase]) -> list[dict[str, Any]]:
    """One row per phase and operation that was offered: counts, and percentiles of the latency in milliseconds."""
    rows: list[dict[str, Any]] = []
    for phase in phases:
        in_phase = [sample for sample in samples if sample.phase == phase.name]
        for operation in sorted({sample.operation for sample in in_phase}):
            mine = [sample for sample in in_phase if sample.operation == operation]
            latencies = [sample.latency_ms for sample in mine]
            rows.append(
                {
                    "phase": phase.name,
                    "operation": operation,
                    "samples": len(mine),
                    "failed": sum(not sample.ok for sample in mine),
                    **{f"p{percent:g}_ms": percentile(latencies, percent) for percent in PERCENTS},
                    "max_ms": max(latencies),
                    "rate_per_s": len(mine) / phase.duration_s,
                }
            )
    return rows


def schedule_lag_ms_p99(samples: Sequence[Sample]) -> float:
    """99th percentile of how late calls left the generator, in milliseconds; 0 without samples."""
    return percentile([sample.lag_ms for sample in samples], 99) if samples else 0.0


def _latency_table(run: Run) -> list[str]:
    lines = [
        f"{'phase':<12} {'operation':<9} {'per s':>8} {'samples':>8} {'failed':>7}"
        f" {'p50 ms':>9} {'p95 ms':>9} {'p99 ms':>9} {'max ms':>9}"
    ]
    for row in latency_rows(run.samples, run.phases):
        cells = " ".join(f"{_ms(row[key]):>9}" for key in ("p50_ms", "p95_ms", "p99_ms", "max_ms"))
        lines.append(
            f"{row['phase']:<12} {row['operation']:<9} {row['rate_per_s']:>8.1f}"
            f" {row['samples']:>8,} {row['failed']:>7,} {cells}"
        )
    return lines


def _objective_table(verdict: Verdict) -> list[str]:
    lines = [f"{'objective':<32} {'samples':>8} {'observed':>12} {'limit':>12}  result"]
    for finding in verdict.findings:
        goal = finding.objective
        name = f"p{goal.percentile:g} {goal.operation} in {goal.phase}"
        result = f"{finding.outcome}: {finding.reason}" if finding.reason else str(finding.outcome)
        lines.append(
            f"{name:<32} {finding.samples:>8,} {_ms(finding.observed_ms) + ' ms':>12}"
            f" {_ms(goal.latency_ms_max) + ' ms':>12}  {result}"
        )
    return lines


def _failure_lines(samples: Sequence[Sample]) -> list[str]:
    lines = []
    for code, count in failures_by_code(samples).items():
        example = next(sample for sample in samples if sample.code == code)
        lines.append(
            f"failed: {count:,} x {code}, for example {example.operation} in {example.phase}: {example.detail}"
        )
    return lines


def _ms(value: float) -> str:
    if math.isnan(value):
        return "-"
    return "failed" if math.isinf(value) else f"{value:,.1f}"


def _number(value: float) -> float | None:
    return round(value, 3) if math.isfinite(value) else None
