"""Did the run meet its objectives? Observed values against limits, one outcome each.

A single run prints what was *observed* and claims no confidence: latencies in a burst are autocorrelated, so no
binomial bound over its requests would be honest. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from loadtest.arrivals import Phase
from loadtest.samples import MISSING, Sample, percentile
from loadtest.slo import Objective
from loadtest.workload import PlannedCall

FLATTENED_MAX = 0.05
"""Share of a phase's calls that the generator may send after the phase is over; more is another load than planned."""


class Outcome(StrEnum):
    """What a run shows about an objective."""

    MET = "met"
    BREACHED = "breached"
    UNDECIDED = "undecided"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One objective beside what was observed."""

    objective: Objective
    samples: int
    failed: int
    observed_ms: float
    """The percentile from the intended time; infinite when it falls on a failed call, NaN without samples."""
    outcome: Outcome
    reason: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """All findings of a run."""

    findings: tuple[Finding, ...]

    @property
    def outcome(self) -> Outcome:
        """Breached if anything is, else undecided if anything is, else met."""
        outcomes = {finding.outcome for finding in self.findings}
        for worst in (Outcome.BREACHED, Outcome.UNDECIDED):
            if worst in outcomes:
                return worst
        return Outcome.MET


def complete(calls: Sequence[PlannedCall], samples: Sequence[Sample]) -> tuple[Sample, ...]:
    """One sample per scheduled call, in order; a call without a record counts as failed.

    Raises ValueError when a record belongs to no scheduled call or two to the same.
    """
    recorded = {sample.index: sample for sample in samples}
    if len(recorded) != len(samples) or not recorded.keys() <= {call.index for call in calls}:
        raise ValueError("samples do not belong to this plan: an index is foreign or occurs twice")
    return tuple(recorded.get(call.index) or _missing(call) for call in calls)


def judge(objectives: Sequence[Objective], phases: Sequence[Phase], samples: Sequence[Sample]) -> Verdict:
    """A finding for each objective. `samples` must be `complete`."""
    ends_s: dict[str, float] = {}
    end_s = 0.0
    for phase in phases:
        end_s += phase.duration_s
        ends_s[phase.name] = end_s
    return Verdict(tuple(_judge_one(objective, ends_s[objective.phase], samples) for objective in objectives))


def _judge_one(objective: Objective, phase_end_s: float, samples: Sequence[Sample]) -> Finding:
    mine = [s for s in samples if s.phase == objective.phase and s.operation == objective.operation]
    failed = sum(not sample.ok for sample in mine)
    observed_ms = percentile([s.latency_ms for s in mine], objective.percentile) if mine else math.nan
    outcome, reason = _decide(objective, phase_end_s, mine, failed, observed_ms)
    return Finding(
        objective=objective, samples=len(mine), failed=failed, observed_ms=observed_ms, outcome=outcome, reason=reason
    )


def _decide(
    objective: Objective, phase_end_s: float, mine: Sequence[Sample], failed: int, observed_ms: float
) -> tuple[Outcome, str]:
    needed = objective.samples_needed
    if len(mine) < needed:
        return Outcome.UNDECIDED, f"{len(mine)} samples, {needed} needed for p{objective.percentile:g}"
    if failed / len(mine) > objective.failures_ratio_max:
        return Outcome.BREACHED, f"{failed} of {len(mine)} calls failed"
    if observed_ms > objective.latency_ms_max:
        # Latency from the intended time contains the generator's own lag: blame the mesh only for its own part.
        service_ms = percentile([s.service_ms for s in mine], objective.percentile)
        if service_ms <= objective.latency_ms_max:
            return Outcome.UNDECIDED, f"the generator's lag alone makes the breach: {service_ms:.1f} ms once sent"
        return Outcome.BREACHED, "over the limit"
    late = sum(s.sent_s > phase_end_s and s.intended_s <= phase_end_s for s in mine)
    if late / len(mine) > FLATTENED_MAX:
        return Outcome.UNDECIDED, f"the generator sent {late} calls after the phase was over: the load was flattened"
    return Outcome.MET, ""


def _missing(call: PlannedCall) -> Sample:
    return Sample(
        index=call.index,
        phase=call.phase,
        operation=call.operation,
        question=call.question,
        intended_s=call.intended_s,
        sent_s=call.intended_s,
        done_s=call.intended_s,
        code=MISSING,
    )
