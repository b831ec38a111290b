"""The topology record: what it refuses, and how many voters a change must fence."""

from __future__ import annotations

from itertools import combinations

import pytest

from services.quorum.members import ReplicaRef
from services.quorum.shard_record import (
    Membership,
    ShardRecord,
    ShardState,
    with_added,
    with_removed,
    with_replaced,
)


def refs(*names: str) -> tuple[ReplicaRef, ...]:
    return tuple(ReplicaRef(name, f"node-{name}") for name in names)


def record(voters: str = "abc", read: int = 2, write: int = 2, learners: str = "") -> ShardRecord:
    return ShardRecord(1, ShardState.ACTIVE, Membership(refs(*voters), refs(*learners), read, write))


@pytest.mark.parametrize(
    ("voters", "learners", "read", "write", "message"),
    [
        ("", "", 1, 1, "at least one voter"),
        ("aab", "", 2, 2, "a is listed twice"),
        ("abc", "c", 2, 2, "c is listed twice"),
        ("abc", "", 4, 2, "R=4 is not between 1 and the 3 voters"),
        ("abc", "", 2, 0, "W=0 is not between 1 and the 3 voters"),
        ("abc", "", 1, 2, "together they are at least 4"),
    ],
)
def test_impossible_members_are_refused(voters: str, learners: str, read: int, write: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Membership(refs(*voters), refs(*learners), read, write)


def test_a_removed_id_never_comes_back() -> None:
    start = record()
    after = start.frozen(with_replaced(start.members, "c", *refs("d"))).activated()
    assert (after.epoch, sorted(after.removed)) == (3, ["c"])
    with pytest.raises(ValueError, match="c was removed and may not come back; start it under a new id"):
        after.frozen(with_replaced(after.members, "a", *refs("c")))
    with pytest.raises(ValueError, match="c was removed"):
        after.with_learner(*refs("c"))


def test_an_aborted_change_keeps_the_members_and_gives_the_new_id_up() -> None:
    start = record()
    after = start.frozen(with_replaced(start.members, "c", *refs("d"))).aborted()
    assert (after.epoch, after.members, sorted(after.removed)) == (3, start.members, ["d"])


def test_one_change_at_a_time() -> None:
    start = record()
    frozen = start.frozen(with_replaced(start.members, "c", *refs("d")))
    with pytest.raises(ValueError, match="resume or abort it first"):
        frozen.frozen(start.members)
    with pytest.raises(ValueError, match="resume or abort it first"):
        frozen.with_learner(*refs("e"))
    with pytest.raises(ValueError, match="frozen in epoch 2"):
        frozen.quorum_members()


def test_state_and_proposal_agree() -> None:
    members = record().members
    with pytest.raises(ValueError, match="names the proposed members"):
        ShardRecord(1, ShardState.FROZEN, members)
    with pytest.raises(ValueError, match="names the proposed members"):
        ShardRecord(1, ShardState.ACTIVE, members, proposed=members)
    with pytest.raises(ValueError, match="only a FROZEN record"):
        ShardRecord(1, ShardState.ACTIVE, members, dead=frozenset("a"))
    with pytest.raises(ValueError, match="epoch 0 is below 1"):
        ShardRecord(0, ShardState.ACTIVE, members)


def test_the_dead_are_voters_that_leave() -> None:
    start = record()
    with pytest.raises(ValueError, match="x is called dead but is no voter"):
        start.frozen(with_replaced(start.members, "c", *refs("d")), frozenset("x"))
    with pytest.raises(ValueError, match="a is called dead and cannot stay"):
        start.frozen(with_replaced(start.members, "c", *refs("d")), frozenset("a"))


def test_too_many_dead_are_refused() -> None:
    start = record()
    with pytest.raises(ValueError, match="1 living voters cannot show every acknowledged write: 2 are needed"):
        start.frozen(Membership(refs("a", "d", "e"), (), 2, 2), frozenset("bc"))


def test_changes_of_members() -> None:
    members = record(learners="d").members
    added = with_added(members, *refs("d"), read_quorum=2, write_quorum=3)
    assert (added.voters, added.learners) == (refs(*"abcd"), ())
    assert with_removed(added, "a", read_quorum=2, write_quorum=2).voters == refs(*"bcd")
    with pytest.raises(ValueError, match="together they are at least 5"):
        with_added(members, *refs("d"), read_quorum=2, write_quorum=2)
    with pytest.raises(ValueError, match="x is no member of this shard; name one of a, b, c, d"):
        with_removed(members, "x", read_quorum=2, write_quorum=2)
    with pytest.raises(ValueError, match="d is no voter of this shard"):
        with_replaced(members, "d", *refs("e"))


@pytest.mark.parametrize(
    ("count", "read", "write"),
    [(n, r, w) for n in range(1, 8) for r in range(1, n + 1) for w in range(1, n + 1) if r + w > n],
)
def test_every_choice_of_fenced_voters_meets_what_the_rule_is_for(count: int, read: int, write: int) -> None:
    names = "abcdefg"[:count]
    start = record(names, read, write)
    for dead in (frozenset[str](), frozenset(names[0])):
        if len(dead) >= write:
            continue
        living = [name for name in names if name not in dead]
        successor = with_replaced(start.members, names[0], *refs("z"))
        needed = start.frozen(successor, dead).fences_needed()
        for fenced in combinations(living, needed):
            free = len(living) - len(fenced)
            assert free < read, "a round of the old epoch still wins"
            assert count - len(fenced) < write, "a write of the old epoch still wins, or one is in no fenced voter"
