"""The SLO file: what load is offered and what must hold under it.

One TOML file, fully validated: an unknown key, an impossible percentile, a phase without arrivals or an objective
about something that is never offered is an `SloError` that names the key.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from loadtest.arrivals import Phase, Process
from loadtest.workload import Operation

LEVELS = ("quorum", "session", "one")
QUESTION_KINDS = ("auto", "text", "vector")


class SloError(ValueError):
    """The SLO file says something that cannot be tested; the message names file and key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """`[load]`: what is offered, apart from the phases."""

    collection: str = "docs"
    seed: int = 1
    arrivals: Process = Process.POISSON
    """Spacing of arrivals: constant or poisson."""
    questions: str = "auto"
    """text, vector, or auto: text when the collection has texts to ask about, else vectors."""
    zipf_exponent: float = 1.0
    """Skew of question popularity; 0 asks all equally often."""
    k: int = 10
    consistency: str = "quorum"
    deadline_ms: int = 2_000
    """Deadline of each call, from when it is sent."""
    inflight_max: int = 2_048
    """Calls under way; beyond it a call is recorded as NOT_SENT, a failure."""
    mix: Mapping[Operation, float] = field(default_factory=lambda: {Operation.SEARCH: 1.0})
    """`[load.mix]`: relative weight of each operation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """`[[objectives]]`: a percentile of one operation's latency in one phase."""

    phase: str
    operation: Operation
    percentile: float
    latency_ms_max: float
    failures_ratio_max: float = 0.0
    """Share of calls that may fail. A failed call also counts as infinitely slow in the percentile."""
    samples_min: int = 0
    """Fewer samples leave the objective undecided; 0: five samples beyond the percentile."""

    @property
    def samples_needed(self) -> int:
        return self.samples_min or round(5 / (1 - self.percentile / 100))


@dataclass(frozen=True, slots=True)
class Slo:
    """A whole SLO file."""

    path: Path
    load: Load
    phases: tuple[Phase, ...]
    objectives: tuple[Objective, ...]


def load_slo(path: Path) -> Slo:
    """Read and validate an SLO file. Raises SloError."""
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise SloError(f"SLO file {path}: {error}") from error
    return parse_slo(raw, path)


def parse_slo(raw: Mapping[str, Any], path: Path) -> Slo:
    """Turn a parsed SLO file into an Slo. Raises SloError."""
    try:
        known = ("load", "phases", "objectives")
        for key in raw:
            _require(key in known, f"unknown section {key!r}; known: {', '.join(known)}")
        slo = Slo(
            path,
            _load(raw.get("load", {})),
            tuple(_record(Phase, row, f"phases[{i}]") for i, row in enumerate(_rows(raw, "phases"))),
            tuple(_record(Objective, row, f"objectives[{i}]") for i, row in enumerate(_rows(raw, "objectives"))),
        )
        _validate_load(slo.load)
        _validate_phases(slo.phases)
        for index, objective in enumerate(slo.objectives):
            _validate_objective(objective, slo, f"objectives[{index}]")
    except SloError as error:
        raise SloError(f"SLO file {path}: {error}") from None
    return slo


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise SloError(message)


def _rows(raw: Mapping[str, Any], name: str) -> list[Any]:
    rows = raw.get(name, [])
    _require(isinstance(rows, list) and bool(rows), f"needs at least one [[{name}]]")
    return list(rows)


def _load(raw: Any) -> Load:
    _require(isinstance(raw, Mapping), "[load] must be a table")
    values = dict(raw)
    if "mix" in values:
        mix = values["mix"]
        _require(isinstance(mix, Mapping) and bool(mix), "[load.mix] must be a table with at least one operation")
        values["mix"] = {
            _converted(Operation, key, "load.mix key"): _converted(float, weight, f"load.mix.{key}")
            for key, weight in mix.items()
        }
    return _record(Load, values, "load")


_Record = TypeVar("_Record")
_KINDS: Mapping[str, type[Any]] = {
    "str": str,
    "int": int,
    "float": float,
    "Process": Process,
    "Operation": Operation,
    "Mapping[Operation, float]": dict,
}


def _record(kind: type[_Record], raw: Any, name: str) -> _Record:
    """A frozen section from its table: every key known, every needed key there, every type right."""
    _require(isinstance(raw, Mapping), f"{name} must be a table")
    known = {item.name: item for item in fields(kind)}  # type: ignore[arg-type]  # only dataclasses come here
    for key in raw:
        _require(key in known, f"{name} has no key {key!r}; known: {', '.join(known)}")
    for key, item in known.items():
        optional = item.default is not MISSING or item.default_factory is not MISSING
        _require(optional or key in raw, f"{name} needs {key!r}")
    return kind(**{key: _converted(_KINDS[str(known[key].type)], value, f"{name}.{key}") for key, value in raw.items()})


def _converted(kind: type[Any], value: Any, name: str) -> Any:
    if kind is float and type(value) is int:
        return float(value)
    if kind in (Process, Operation):
        choices = [str(member) for member in kind]
        _require(value in choices, f"{name} must be one of {', '.join(choices)}, not {value!r}")
        return kind(value)
    _require(type(value) is kind, f"{name} must be {kind.__name__}, not {value!r}")
    return value


def _validate_load(load: Load) -> None:
    _require(bool(load.collection), "load.collection must not be empty")
    _require(load.questions in QUESTION_KINDS, f"load.questions must be one of {', '.join(QUESTION_KINDS)}")
    _require(load.consistency in LEVELS, f"load.consistency must be one of {', '.join(LEVELS)}")
    _require(load.seed >= 0, f"load.seed must be at least 0, not {load.seed}")
    _require(0 <= load.zipf_exponent <= 10, f"load.zipf_exponent must be 0 to 10, not {load.zipf_exponent}")
    for key in ("k", "deadline_ms", "inflight_max"):
        _require(getattr(load, key) >= 1, f"load.{key} must be at least 1, not {getattr(load, key)}")
    for operation, weight in load.mix.items():
        _require(0 <= weight < float("inf"), f"load.mix.{operation} must be a weight of at least 0, not {weight}")
    _require(sum(load.mix.values()) > 0, "load.mix needs an operation with a weight above 0")


def _validate_phases(phases: tuple[Phase, ...]) -> None:
    names = [phase.name for phase in phases]
    for index, phase in enumerate(phases):
        name = f"phases[{index}]"
        _require(bool(phase.name), f"{name}.name must not be empty")
        _require(names.count(phase.name) == 1, f"{name}.name {phase.name!r} is given to two phases")
        _require(0 < phase.duration_s <= 86_400, f"{name}.duration_s must be above 0 and at most a day")
        _require(0 < phase.rate_per_s <= 100_000, f"{name}.rate_per_s must be above 0 and at most 100,000")
        _require(phase.duration_s * phase.rate_per_s >= 1, f"{name} ({phase.name}) is empty: less than one arrival")


def _validate_objective(objective: Objective, slo: Slo, name: str) -> None:
    phases = [phase.name for phase in slo.phases]
    _require(objective.phase in phases, f"{name}.phase {objective.phase!r} is no phase; known: {', '.join(phases)}")
    _require(
        slo.load.mix.get(objective.operation, 0) > 0,
        f"{name}.operation {objective.operation} has no weight in load.mix, so it is never offered",
    )
    _require(
        0 < objective.percentile < 100, f"{name}.percentile must lie between 0 and 100, not {objective.percentile}"
    )
    _require(
        0 < objective.latency_ms_max < float("inf"),
        f"{name}.latency_ms_max must be above 0, not {objective.latency_ms_max}",
    )
    _require(
        0 <= objective.failures_ratio_max <= 1,
        f"{name}.failures_ratio_max must be 0 to 1, not {objective.failures_ratio_max}",
    )
    _require(objective.samples_min >= 0, f"{name}.samples_min must be at least 0, not {objective.samples_min}")
