"""The controller: what it does in which order, what it does not believe, and that the record is all it needs."""

from __future__ import annotations

import pytest

from services.quorum.controller import CatchUp, Controller, Finished, SendFence, WriteRecord
from services.quorum.gtid import Gtid, GtidSet
from services.quorum.members import ReplicaRef
from services.quorum.shard_record import Membership, ShardRecord, ShardState, with_replaced


def refs(*names: str) -> tuple[ReplicaRef, ...]:
    return tuple(ReplicaRef(name, f"node-{name}") for name in names)


def held(*seqs: int) -> GtidSet:
    return GtidSet.of(*(Gtid(7, seq) for seq in seqs))


START = ShardRecord(1, ShardState.ACTIVE, Membership(refs(*"abc"), (), 2, 2))
PROPOSED = with_replaced(START.members, "c", *refs("d"))
FROZEN = START.frozen(PROPOSED)


def test_a_replacement_from_freeze_to_activation() -> None:
    controller = Controller(START)
    assert controller.begin(PROPOSED) == (WriteRecord(1, FROZEN),)
    assert controller.on_record(FROZEN) == tuple(SendFence(voter, 2) for voter in refs(*"abc"))
    assert controller.on_fenced("c", 2, held(1, 2)) == tuple(SendFence(voter, 2) for voter in refs(*"ab"))
    assert controller.progress() == "epoch 2: 1 of 2 voters fenced"
    a, b, c, d = refs(*"abcd")
    assert controller.on_fenced("b", 2, held(2, 3)) == (
        CatchUp(a, held(1, 2, 3), (b, c)),
        CatchUp(b, held(1, 2, 3), (c,)),
        CatchUp(d, held(1, 2, 3), (b, c)),
    )
    controller.on_applied("a", held(1, 2, 3))
    controller.on_applied("b", held(1))
    assert controller.progress() == "epoch 2: 2 of 3 new voters caught up"
    assert controller.on_applied("d", held(1, 2, 3, 4)) == (WriteRecord(2, FROZEN.activated()),)
    assert controller.on_record(FROZEN.activated()) == (Finished(FROZEN.activated(), by_this=True),)


def test_only_fences_of_this_epoch_by_living_voters_count() -> None:
    controller = Controller(START.frozen(PROPOSED, frozenset("c")))
    fences = controller.resume()
    assert fences == tuple(SendFence(voter, 2) for voter in refs(*"ab"))
    for name, epoch in (("a", 1), ("a", 3), ("c", 2), ("d", 2), ("x", 2)):
        assert controller.on_fenced(name, epoch, held(9)) == ()
    controller.on_fenced("a", 2, held(1))
    controller.on_fenced("a", 2, held(1, 5))
    assert controller.union() is None, "one voter counts once"
    controller.on_fenced("b", 2, held(2))
    assert controller.union() == held(1, 2)


def test_nothing_is_activated_before_every_new_voter_has_the_union() -> None:
    controller = Controller(FROZEN)
    controller.resume()
    controller.on_applied("d", held(1))
    controller.on_fenced("a", 2, held(1, 2))
    effects = controller.on_fenced("b", 2, held(1, 2))
    assert [effect.replica.replica_id for effect in effects if isinstance(effect, CatchUp)] == ["d"]
    assert effects == controller.outstanding()


def test_another_controller_resumes_from_the_record_alone() -> None:
    first = Controller(START)
    first.begin(PROPOSED)
    first.on_record(FROZEN)
    first.on_fenced("a", 2, held(1))
    second = Controller(FROZEN)
    assert len(second.resume()) == 3, "what the first one heard is asked for again"
    second.on_fenced("b", 2, held(1))
    second.on_fenced("c", 2, held(1))
    second.on_applied("a", held(1))
    assert second.on_applied("d", held(1)) == (WriteRecord(2, FROZEN.activated()),)
    assert first.on_record(FROZEN.activated()) == (Finished(FROZEN.activated(), by_this=False),)
    assert first.on_fenced("b", 2, held(1)) == ()


def test_a_lost_race_to_freeze_carries_on_with_the_winners_change() -> None:
    theirs = START.frozen(with_replaced(START.members, "a", *refs("e")))
    controller = Controller(START)
    controller.begin(PROPOSED)
    assert controller.on_record(START) == (WriteRecord(1, FROZEN),), "not written yet: again"
    controller.on_record(theirs)
    assert controller.record == theirs
    assert all(isinstance(effect, SendFence) for effect in controller.outstanding())


def test_abort_and_completion_exclude_each_other() -> None:
    aborting = Controller(FROZEN)
    assert aborting.abort() == (WriteRecord(2, FROZEN.aborted()),)
    assert aborting.on_record(FROZEN.activated()) == (Finished(FROZEN.activated(), by_this=False),)
    with pytest.raises(ValueError, match="nothing to abort"):
        Controller(START).abort()


def test_nothing_to_resume() -> None:
    assert Controller(START).resume() == (Finished(START, by_this=False),)


def test_a_change_under_way_is_not_overwritten() -> None:
    with pytest.raises(ValueError, match="resume or abort it first"):
        Controller(FROZEN).begin(PROPOSED)
