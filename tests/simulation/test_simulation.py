"""Three hundred seeds of the whole cluster, and every mutant caught within its budget."""

from __future__ import annotations

import pytest

from tests.simulation.cluster import CONFIGS, Parts, run
from tests.simulation.directed import SCHEDULES, Schedule
from tests.simulation.mutant_table import TABLE
from tests.simulation.mutants import MUTANT_CONFIG, MUTANTS

SEEDS = 300


@pytest.mark.parametrize("seed", range(SEEDS))
def test_no_promise_is_broken(seed: int) -> None:
    config = CONFIGS[seed % len(CONFIGS)]
    print(f"python -m tests.simulation --seed {seed} --config {config}")
    result = run(seed, config)
    assert result.searches > 0
    assert result.acked > 0
    assert not result.violations, f"{result.command()}: {[v.text for v in result.violations[:3]]}"


@pytest.mark.parametrize("name", sorted(MUTANTS))
def test_mutant_is_caught(name: str) -> None:
    mutant = MUTANTS[name]
    if mutant.schedule is not None:
        assert mutant.schedule(mutant.parts), f"{mutant.schedule.__name__} did not notice {name}"
        return
    for seed in range(mutant.budget):
        result = run(seed, MUTANT_CONFIG, mutant.parts)
        if result.violations:
            print(f"caught by seed {seed}: {result.violations[0].check}: {result.violations[0].text}")
            return
    pytest.fail(f"{name} was not caught by {mutant.budget} seeds of {MUTANT_CONFIG}")


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: str(schedule.__name__))
def test_the_protocol_keeps_its_promises_on_schedules_made_to_break_it(schedule: Schedule) -> None:
    assert [violation.text for violation in schedule(Parts())] == []


def test_every_schedule_has_a_mutant_that_it_catches() -> None:
    assert {mutant.schedule for mutant in MUTANTS.values()} - {None} == set(SCHEDULES)


def test_the_table_of_mutants_names_them_all() -> None:
    """`make mutants` writes it; a mutant that was added or renamed since is missing there."""
    rows = [line.split("|") for line in TABLE.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    listed = {row[1].strip().strip("`"): row[2].strip() for row in rows}
    assert listed == {name: mutant.breaks for name, mutant in MUTANTS.items()}


def test_a_seed_always_gives_the_same_history() -> None:
    first, second = run(11, "3/2/2"), run(11, "3/2/2")
    assert first == second
