"""How stale a replica says it is, given when its exchanges began."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from services.quorum.members import Members, ReplicaRef
from services.shard.freshness import staleness_ms


def members(count: int, write_quorum: int) -> Members:
    return Members(1, tuple(ReplicaRef(f"r{n}", f"n{n}") for n in range(count)), count, write_quorum)


@pytest.mark.parametrize(
    ("voters", "write_quorum", "began_s", "expected"),
    [
        (3, 2, {}, None),
        (3, 2, {"r1": 99.0}, 1_000),
        (3, 2, {"r1": 99.0, "r2": 99.5}, 500),  # N-W = 1: the latest
        (5, 3, {"r1": 99.0}, None),
        (5, 3, {"r1": 99.0, "r2": 99.5, "r3": 98.0}, 1_000),  # N-W = 2: the second latest
        (3, 3, {}, 0),  # every acknowledged write is on every voter
        (3, 2, {"r0": 99.9, "gone": 99.9}, None),  # neither itself nor a replica that is no voter counts
        (3, 2, {"r1": 100.4}, 0),  # began after the call came
        (3, 2, {"r1": 99.9995}, 1),  # rounded up: never told younger than it is
    ],
)
def test_staleness_counts_back_to_the_exchange_that_makes_enough_voters(
    voters: int, write_quorum: int, began_s: dict[str, float], expected: int | None
) -> None:
    repair: Any = SimpleNamespace(exchanged=began_s)
    assert staleness_ms(members(voters, write_quorum), "r0", repair, 100.0) == expected


def test_a_replica_that_never_exchanged_has_no_age() -> None:
    assert staleness_ms(members(3, 2), "r0", None, 100.0) is None
