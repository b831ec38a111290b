"""Who trains a codec, when, and on which rows."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.shard.codec_policy import Basis, Fit, owner, reason_to_train, shares, training_rows

ORDER = ("n1", "n2", "n3")
SILENT_S = 10.0


@pytest.mark.parametrize(
    ("heard", "me", "expected"),
    [
        ({"n1": 95.0, "n2": 95.0}, "n3", "n1"),
        ({"n1": 89.9, "n2": 90.0}, "n3", "n2"),  # silent for longer than 10 s
        ({"n1": 80.0, "n2": 80.0}, "n3", "n3"),
        ({"n2": 99.0, "n3": 99.0}, "n1", "n1"),  # a node always hears itself
        ({}, "n2", "n2"),
    ],
)
def test_the_first_node_that_is_heard_trains(heard: dict[str, float], me: str, expected: str) -> None:
    assert owner(ORDER, heard, me, now_s=100.0, silent_s=SILENT_S) == expected


@given(st.dictionaries(st.sampled_from(ORDER), st.floats(0, 100)))
def test_nodes_that_hear_the_same_agree(heard: dict[str, float]) -> None:
    """If each one hears itself and all share one picture of the others, exactly one takes itself for the owner."""
    alive = {node for node in ORDER if 100.0 - heard.get(node, -SILENT_S) <= SILENT_S}
    believers = {node for node in alive if owner(ORDER, heard, node, 100.0, SILENT_S) == node}
    assert len(believers) == bool(alive)


@pytest.mark.parametrize(
    ("basis", "rows", "fit", "expected"),
    [
        (None, 99, None, ""),
        (None, 100, None, "no codec yet"),
        (Basis(1, 100, Fit(0.1, 1.5)), 200, None, ""),
        (Basis(1, 100, Fit(0.1, 1.5)), 201, None, "growth from 100 to 201 rows"),
        (Basis(1, 100, Fit(0.1, 1.5)), 150, Fit(0.11, 1.7), ""),
        (Basis(1, 100, Fit(0.1, 1.5)), 150, Fit(0.14, 1.5), "quantisation error rose from 0.1 to 0.14"),
        (Basis(1, 100, Fit(0.1, 1.5)), 150, Fit(0.1, 2.1), "list imbalance rose from 1.5 to 2.1"),
        (Basis(1, 100, Fit(0.0, 0.0)), 150, Fit(9.0, 9.0), ""),  # what it was at training is unknown
        (Basis(1, 100, Fit(0.1, 1.5)), 99, Fit(0.9, 9.0), ""),  # too few rows left to train on
    ],
)
def test_training_needs_a_reason(basis: Basis | None, rows: int, fit: Fit | None, expected: str) -> None:
    assert reason_to_train(basis, rows, rows_min=100, fit=fit) == expected


@given(st.dictionaries(st.integers(0, 63), st.integers(0, 10**6), max_size=8), st.integers(0, 10**5))
def test_shares_are_even_and_complete(live: dict[int, int], wanted: int) -> None:
    found = shares(live, wanted)
    total = sum(live.values())
    assert sum(found.values()) == min(wanted, total)
    for shard, rows in found.items():
        assert rows <= live[shard]
        if total:
            assert abs(rows - live[shard] * min(wanted, total) / total) < 1


@pytest.mark.parametrize(
    ("rows", "lists", "dim", "expected"),
    [
        (5_000, 64, 384, 5_000),
        (10**6, 64, 384, 65_536),
        (10**6, 2_048, 384, 131_072),
        (10**6, 4_096, 384, 174_762),  # 256 MiB
        (10**6, 4_096, 4_096, 16_384),
    ],
)
def test_training_rows_are_bounded(rows: int, lists: int, dim: int, expected: int) -> None:
    assert training_rows(rows, lists, dim) == expected
