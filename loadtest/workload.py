"""What the calls ask: a seeded mix of operations over Zipf-distributed questions.

A few questions are asked often and many rarely, as in real retrieval services; so caches are exercised as they are
in life, neither always hot nor never. Pure: the plan of a run is a function of the schedule, the mix and the seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt

from loadtest.arrivals import Arrival


class Operation(StrEnum):
    """Calls that the harness makes to the router."""

    SEARCH = "search"
    ASK = "ask"
    UPSERT = "upsert"


@dataclass(frozen=True, slots=True)
class PlannedCall:
    """One call, fixed before the run: `question` indexes the question list, or names the document to write."""

    index: int
    intended_s: float
    phase: str
    operation: Operation
    question: int


def zipf_probabilities(count: int, exponent: float) -> npt.NDArray[np.float64]:
    """Probability of each of `count` ranks, proportional to rank ** -exponent; shape (count,), sums to 1."""
    weights = np.arange(1, count + 1, dtype=np.float64) ** -exponent
    probabilities: npt.NDArray[np.float64] = weights / weights.sum()
    return probabilities


def plan_calls(
    arrivals: Sequence[Arrival],
    *,
    mix: Mapping[Operation, float],
    questions: int,
    zipf_exponent: float,
    seed: int,
) -> tuple[PlannedCall, ...]:
    """An operation and a question for every arrival.

    `mix` holds relative weights. Operations and questions are drawn from separate streams of the seed, so changing
    the mix does not change which questions come when. Which question is popular is itself drawn from the seed.
    Raises ValueError without questions or without weight.
    """
    total = sum(mix.values())
    if questions < 1 or total <= 0:
        raise ValueError(f"a plan needs questions and a mix with weight, not {questions} and {dict(mix)}")
    operations = sorted(mix)
    of_operation, of_question, of_popularity = (np.random.default_rng([seed, stream]) for stream in (1, 2, 3))
    weights = [mix[operation] / total for operation in operations]
    chosen = of_operation.choice(len(operations), size=len(arrivals), p=weights)
    ranks = of_question.choice(questions, size=len(arrivals), p=zipf_probabilities(questions, zipf_exponent))
    by_rank = of_popularity.permutation(questions)
    return tuple(
        PlannedCall(
            index, arrival.intended_s, arrival.phase, operations[int(chosen[index])], int(by_rank[ranks[index]])
        )
        for index, arrival in enumerate(arrivals)
    )
