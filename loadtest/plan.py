"""What the parent tells the generator process: one JSON file and one list of questions in the run's directory.

The generator computes the schedule itself from the same pure functions, so the plan stays small and a run can be
repeated from its directory.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from loadtest.arrivals import Phase, Process, schedule
from loadtest.questions import Question, read_questions, write_questions
from loadtest.slo import Load
from loadtest.workload import Operation, PlannedCall, plan_calls

PLAN_FILE = "plan.json"
QUESTIONS_FILE = "questions.jsonl"
SAMPLES_FILE = "samples.jsonl"
GENERATOR_FILE = "generator.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything a run depends on, apart from the mesh."""

    mesh_file: str
    load: Load
    phases: tuple[Phase, ...]
    questions: tuple[Question, ...]

    def calls(self) -> tuple[PlannedCall, ...]:
        """The calls of the run, the same in both processes."""
        return plan_calls(
            schedule(self.phases, self.load.arrivals, self.load.seed),
            mix=self.load.mix,
            questions=len(self.questions),
            zipf_exponent=self.load.zipf_exponent,
            seed=self.load.seed,
        )


def write_plan(directory: Path, plan: Plan) -> None:
    """Store the plan in the run's directory."""
    write_questions(directory / QUESTIONS_FILE, plan.questions)
    raw = {"mesh_file": plan.mesh_file, "load": asdict(plan.load), "phases": [asdict(phase) for phase in plan.phases]}
    (directory / PLAN_FILE).write_text(json.dumps(raw, indent=1), encoding="utf-8")


def read_plan(directory: Path) -> Plan:
    """What `write_plan` stored."""
    raw = json.loads((directory / PLAN_FILE).read_text(encoding="utf-8"))
    load = raw["load"]
    load["arrivals"] = Process(load["arrivals"])
    load["mix"] = {Operation(operation): weight for operation, weight in load["mix"].items()}
    return Plan(
        mesh_file=raw["mesh_file"],
        load=Load(**load),
        phases=tuple(Phase(**phase) for phase in raw["phases"]),
        questions=read_questions(directory / QUESTIONS_FILE),
    )


def without_text_calls(load: Load, questions: Sequence[Question]) -> str:
    """Why this mix cannot be offered with these questions; empty when it can."""
    if load.mix.get(Operation.ASK, 0) > 0 and not all(question.text for question in questions):
        return (
            f"load.mix.ask needs questions in words, but collection {load.collection!r} was found to be searchable by "
            "vector only; set load.mix.ask = 0 or name a questions file"
        )
    return ""
