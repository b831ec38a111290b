"""The SLO file: every mistake is named; the shipped file is valid."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from loadtest.arrivals import Process
from loadtest.slo import SloError, load_slo, parse_slo
from loadtest.workload import Operation

SHIPPED = Path(__file__).parents[2] / "loadtest" / "slo.toml"
VALID: dict[str, Any] = {
    "load": {"collection": "docs", "arrivals": "constant", "mix": {"search": 1, "ask": 0.5}},
    "phases": [
        {"name": "baseline", "duration_s": 10, "rate_per_s": 5},
        {"name": "burst", "duration_s": 5.0, "rate_per_s": 50.0},
    ],
    "objectives": [{"phase": "burst", "operation": "search", "percentile": 95, "latency_ms_max": 100}],
}


def test_a_valid_file_becomes_typed_values() -> None:
    slo = parse_slo(VALID, Path("x.toml"))
    assert slo.load.arrivals is Process.CONSTANT
    assert slo.load.mix == {Operation.SEARCH: 1.0, Operation.ASK: 0.5}
    assert slo.phases[0].duration_s == 10.0
    assert slo.objectives[0].samples_needed == 100


def test_the_shipped_file_is_valid_and_lasts_a_minute() -> None:
    slo = load_slo(SHIPPED)
    assert sum(phase.duration_s for phase in slo.phases) == 60
    assert {"baseline", "burst", "recovery"} <= {phase.name for phase in slo.phases}
    for goal in slo.objectives:
        phase = next(phase for phase in slo.phases if phase.name == goal.phase)
        share = slo.load.mix[goal.operation] / sum(slo.load.mix.values())
        assert phase.duration_s * phase.rate_per_s * share >= 1.3 * goal.samples_needed, goal


_OBJECTIVE = ("objectives", 0)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("lod",), {}, "unknown section 'lod'"),
        (("load", "colection"), "docs", r"load has no key 'colection'; known: collection, seed"),
        (("load", "collection"), "", "load.collection must not be empty"),
        (("load", "arrivals"), "bursty", "load.arrivals must be one of constant, poisson, not 'bursty'"),
        (("load", "seed"), -1, "load.seed must be at least 0"),
        (("load", "seed"), True, "load.seed must be int, not True"),
        (("load", "k"), 0, "load.k must be at least 1"),
        (("load", "deadline_ms"), "2s", "load.deadline_ms must be int"),
        (("load", "questions"), "random", "load.questions must be one of auto, text, vector"),
        (("load", "consistency"), "all", "load.consistency must be one of quorum"),
        (("load", "zipf_exponent"), -0.5, "load.zipf_exponent must be 0 to 10"),
        (("load", "mix"), {}, r"\[load.mix\] must be a table with at least one operation"),
        (("load", "mix", "delete"), 1, "load.mix key must be one of search, ask, upsert"),
        (("load", "mix", "search"), -1, "load.mix.search must be a weight"),
        (("load", "mix"), {"search": 0}, "load.mix needs an operation with a weight above 0"),
        (("phases",), [], r"needs at least one \[\[phases\]\]"),
        (("phases", 0, "duration_s"), 0, r"phases\[0\].duration_s must be above 0"),
        (("phases", 0, "rate_per_s"), 0, r"phases\[0\].rate_per_s must be above 0"),
        (("phases", 0, "rate_per_s"), 0.01, r"phases\[0\] \(baseline\) is empty"),
        (("phases", 0, "name"), "burst", "is given to two phases"),
        (("phases", 0, "rate"), 3, r"phases\[0\] has no key 'rate'"),
        (("objectives",), [], r"needs at least one \[\[objectives\]\]"),
        ((*_OBJECTIVE, "percentile"), 100, r"objectives\[0\].percentile must lie between 0 and 100, not 100"),
        ((*_OBJECTIVE, "percentile"), 0, "percentile must lie between"),
        ((*_OBJECTIVE, "percentile"), float("nan"), "percentile must lie between"),
        ((*_OBJECTIVE, "latency_ms_max"), 0, "latency_ms_max must be above 0"),
        ((*_OBJECTIVE, "latency_ms_max"), float("inf"), "latency_ms_max must be above 0"),
        ((*_OBJECTIVE, "failures_ratio_max"), 1.5, "failures_ratio_max must be 0 to 1"),
        ((*_OBJECTIVE, "samples_min"), -1, "samples_min must be at least 0"),
        ((*_OBJECTIVE, "phase"), "peak", "'peak' is no phase; known: baseline, burst"),
        ((*_OBJECTIVE, "operation"), "upsert", "upsert has no weight in load.mix"),
        ((*_OBJECTIVE, "p95"), 4, "has no key 'p95'"),
    ],
)
def test_every_mistake_is_named(path: tuple[Any, ...], value: Any, message: str) -> None:
    raw = copy.deepcopy(VALID)
    place: Any = raw
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(SloError, match=message) as caught:
        parse_slo(raw, Path("slo/x.toml"))
    assert "slo/x.toml" in str(caught.value)


def test_a_needed_key_that_is_not_there_is_named() -> None:
    raw = copy.deepcopy(VALID)
    del raw["objectives"][0]["percentile"]
    with pytest.raises(SloError, match=r"objectives\[0\] needs 'percentile'"):
        parse_slo(raw, Path("x.toml"))


@pytest.mark.parametrize("content", [b"[load", b"\xff\xfe"])
def test_a_file_that_is_no_toml_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "slo.toml"
    path.write_bytes(content)
    with pytest.raises(SloError, match=r"slo\.toml"):
        load_slo(path)
    with pytest.raises(SloError, match=r"none.toml.*No such file"):
        load_slo(tmp_path / "none.toml")
