"""Plans: the mix that was asked for, Zipf-distributed questions, the same for the same seed."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from loadtest.arrivals import Phase, Process, schedule
from loadtest.workload import Operation, plan_calls, zipf_probabilities

ARRIVALS = schedule((Phase(name="only", duration_s=100, rate_per_s=200),), Process.CONSTANT, seed=1)
MIX = {Operation.SEARCH: 0.8, Operation.ASK: 0.1, Operation.UPSERT: 0.1}


def test_zipf_probabilities_fall_as_the_exponent_says() -> None:
    probabilities = zipf_probabilities(1_000, 1.0)
    assert probabilities.sum() == pytest.approx(1)
    assert probabilities[0] / probabilities[9] == pytest.approx(10)
    assert np.allclose(zipf_probabilities(4, 0.0), 0.25)


def test_mix_and_popularity_are_as_asked() -> None:
    calls = plan_calls(ARRIVALS, mix=MIX, questions=100, zipf_exponent=1.0, seed=2)
    assert [call.index for call in calls] == list(range(len(ARRIVALS)))
    operations = Counter(call.operation for call in calls)
    for operation, weight in MIX.items():
        assert abs(operations[operation] / len(calls) - weight) < 0.02
    ranked = [count for _, count in Counter(call.question for call in calls).most_common()]
    assert ranked[0] / len(calls) == pytest.approx(zipf_probabilities(100, 1.0)[0], abs=0.02)


def test_changing_the_mix_keeps_the_questions() -> None:
    one = plan_calls(ARRIVALS, mix=MIX, questions=50, zipf_exponent=1.0, seed=2)
    other = plan_calls(ARRIVALS, mix={Operation.ASK: 1.0}, questions=50, zipf_exponent=1.0, seed=2)
    assert [call.question for call in one] == [call.question for call in other]
    assert {call.operation for call in other} == {Operation.ASK}


def test_seed_decides_which_question_is_popular() -> None:
    def favourite(seed: int) -> int:
        calls = plan_calls(ARRIVALS, mix=MIX, questions=1_000, zipf_exponent=1.5, seed=seed)
        return Counter(call.question for call in calls).most_common(1)[0][0]

    assert favourite(1) == favourite(1)
    assert len({favourite(seed) for seed in range(5)}) > 1


@pytest.mark.parametrize(("questions", "mix"), [(0, MIX), (5, {Operation.SEARCH: 0.0}), (5, {})])
def test_a_plan_without_content_is_refused(questions: int, mix: dict[Operation, float]) -> None:
    with pytest.raises(ValueError, match="a plan needs"):
        plan_calls(ARRIVALS, mix=mix, questions=questions, zipf_exponent=1.0, seed=0)
