"""A write's outcome never claims more, or less, than its replies allow."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.quorum.clock import Version
from services.quorum.gtid import Gtid
from services.quorum.members import Members, ReplicaRef
from services.quorum.rows import HeadRow, WriteBatch
from services.quorum.status import RETRYABLE, ReplicaStatus
from services.quorum.vote import Vote
from services.quorum.write import Outcome, WriteRound

VOTERS = ("a", "b", "c")
MEMBERS = Members(1, tuple(ReplicaRef(name, f"node-{name}") for name in VOTERS), 2, 2)
VERSION = Version(1, 1)
BATCH = WriteBatch(Gtid(1, 1), VERSION, (), (HeadRow("d", 0, VERSION),))
OK, STALE, BUSY = ReplicaStatus.OK, ReplicaStatus.STALE_EPOCH, ReplicaStatus.OVERLOADED


def sent_to(*names: str) -> WriteRound:
    round_ = WriteRound(MEMBERS, BATCH)
    for name in names:
        round_.sent(name)
    return round_


def test_w_acknowledgements_win() -> None:
    round_ = sent_to(*VOTERS)
    round_.on_reply("a", OK)
    assert (round_.vote, round_.outcome()) == (Vote.PENDING, Outcome.UNCERTAIN)
    round_.on_reply("b", OK)
    assert (round_.vote, round_.outcome(), round_.acks) == (Vote.WON, Outcome.ACKNOWLEDGED, 2)


def test_one_voter_cannot_acknowledge_twice() -> None:
    round_ = sent_to("a", "a")
    round_.on_reply("a", OK)
    round_.on_reply("a", OK)
    assert (round_.acks, round_.vote) == (1, Vote.PENDING)


def test_only_definite_refusals_make_a_refusal() -> None:
    round_ = sent_to(*VOTERS)
    round_.on_reply("a", STALE)
    round_.on_reply("b", STALE)
    assert (round_.vote, round_.outcome()) == (Vote.LOST, Outcome.UNCERTAIN), "c may still apply it"
    round_.on_failure("c", definite=True)
    assert round_.outcome() is Outcome.REFUSED


def test_silence_is_uncertain_for_ever() -> None:
    round_ = sent_to(*VOTERS)
    for name in VOTERS:
        round_.on_failure(name)
    assert (round_.vote, round_.outcome()) == (Vote.PENDING, Outcome.UNCERTAIN)
    round_.sent("a")
    round_.on_reply("a", STALE)
    assert round_.outcome() is Outcome.UNCERTAIN, "the first attempt may still arrive"


def test_nothing_sent_is_refused() -> None:
    assert WriteRound(MEMBERS, BATCH).outcome() is Outcome.REFUSED


def test_busy_voters_are_asked_again_and_final_ones_are_not() -> None:
    round_ = sent_to(*VOTERS)
    assert round_.retryable() == ()
    round_.on_reply("a", BUSY)
    round_.on_reply("b", STALE)
    round_.on_failure("c")
    assert [voter.replica_id for voter in round_.retryable()] == ["a", "c"]
    assert round_.reason() == (
        "0 of 2 needed voters acknowledged; node-a answered OVERLOADED; node-b answered STALE_EPOCH; "
        "node-c did not answer"
    )


def test_refusal_after_success_changes_nothing() -> None:
    round_ = sent_to("a", "a")
    round_.on_reply("a", OK)
    round_.on_reply("a", STALE)
    assert (round_.acks, round_.retryable()[0].replica_id) == (1, "b")


def test_reply_without_attempt_is_a_bug() -> None:
    with pytest.raises(AssertionError):
        WriteRound(MEMBERS, BATCH).on_reply("a", OK)


events = st.tuples(st.sampled_from(VOTERS), st.sampled_from([*ReplicaStatus, "lost", "unsent"]))


@given(st.lists(events, max_size=12), st.sets(st.sampled_from(VOTERS)))
@settings(deadline=None, max_examples=400)
def test_outcome_follows_from_what_each_voter_said(
    history: list[tuple[str, ReplicaStatus | str]], still_pending: set[str]
) -> None:
    round_ = WriteRound(MEMBERS, BATCH)
    for name, said in history:
        round_.sent(name)
        if isinstance(said, ReplicaStatus):
            round_.on_reply(name, said)
        else:
            round_.on_failure(name, definite=said == "unsent")
    for name in still_pending:
        round_.sent(name)
    applied = {name for name, said in history if said is OK}
    may_have_applied = applied | still_pending | {name for name, said in history if said == "lost"}
    if len(applied) >= 2:
        assert round_.outcome() is Outcome.ACKNOWLEDGED
    elif may_have_applied:
        assert round_.outcome() is Outcome.UNCERTAIN
    else:
        assert round_.outcome() is Outcome.REFUSED
    assert {voter.replica_id for voter in round_.retryable()}.isdisjoint(applied | still_pending)
    assert round_.acks == len(applied)


def test_no_final_refusal_is_retryable() -> None:
    assert {OK, STALE, ReplicaStatus.TOO_OLD, ReplicaStatus.CLOCK_SKEW, ReplicaStatus.INVALID}.isdisjoint(RETRYABLE)
