"""A hundred seeds of the whole cluster, and every mutant caught within its budget."""

from __future__ import annotations

import pytest

from tests.simulation.cluster import CONFIGS, run
from tests.simulation.mutants import MUTANTS

SEEDS = 100
MUTANT_CONFIG = "3/2/2"
BUDGETS = {
    "ack-before-commit": 10,
    "set-before-rows": 5,
    "set-read-after-search": 20,
    "head-without-depends": 20,
    "pull-part": 5,
    "pull-without-covering": 10,
    "arrival-wins": 5,
    "no-clock-round": 5,
    "require-nothing": 5,
    "silent-not-counted": 10,
    "old-summary": 60,
    "read-one": 5,
}
"""Seeds within which each mutant must be noticed; several times what it took when it was written."""


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
    for seed in range(BUDGETS[name]):
        result = run(seed, MUTANT_CONFIG, MUTANTS[name])
        if result.violations:
            print(f"caught by seed {seed}: {result.violations[0].check}: {result.violations[0].text}")
            return
    pytest.fail(f"{name} was not caught by {BUDGETS[name]} seeds of {MUTANT_CONFIG}")


def test_a_seed_always_gives_the_same_history() -> None:
    first, second = run(11, "3/2/2"), run(11, "3/2/2")
    assert first == second
