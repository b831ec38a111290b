"""The counting rule over every state of up to three voters, and the rules of a round."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain, combinations, product

import pytest

from services.quorum.gtid import Gtid, GtidSet
from services.quorum.members import Members, ReplicaRef
from services.quorum.replica import Summary
from services.quorum.status import ReplicaStatus
from services.quorum.summary import SummaryRound
from services.quorum.vote import Vote, tally

G = GtidSet.of(Gtid(1, 1))


def members(voters: int, read: int, write: int) -> Members:
    return Members(1, tuple(ReplicaRef(f"r{n}", f"n{n}") for n in range(voters)), read, write)


def subsets(count: int) -> Iterable[tuple[int, ...]]:
    return chain.from_iterable(combinations(range(count), size) for size in range(count + 1))


def answer(number: int, holds: bool, hlc_max: int = 0) -> Summary:
    return Summary(f"r{number}", ReplicaStatus.OK, G if holds else GtidSet.EMPTY, hlc_max, 1)


def cases() -> Iterator[tuple[int, int, int, tuple[int, ...], tuple[int, ...]]]:
    """Every (N, R, W) with R + W > N, who holds the batch, who answers."""
    for voters in (1, 2, 3):
        for read, write in product(range(1, voters + 1), repeat=2):
            if read + write > voters:
                yield from ((voters, read, write, h, a) for h in subsets(voters) for a in subsets(voters))


@pytest.mark.parametrize(("voters", "read", "write", "holders", "answers"), list(cases()))
def test_acknowledged_is_required_and_impossible_is_not(
    voters: int, read: int, write: int, holders: tuple[int, ...], answers: tuple[int, ...]
) -> None:
    round_ = SummaryRound(members(voters, read, write))
    for number in answers:
        round_.add(answer(number, number in holders, 10 + number))
    if len(answers) < read:
        assert round_.vote is Vote.PENDING
        return
    assert round_.vote is Vote.WON
    required = bool(round_.require())
    seen = len(set(holders) & set(answers))
    could_be_acknowledged = seen + (voters - len(answers)) >= write
    if len(holders) >= write:
        assert required, "an acknowledged batch is required"
    assert required == (could_be_acknowledged and seen > 0)
    assert round_.hlc_max() == max(10 + number for number in answers)


@pytest.mark.parametrize("holders", list(subsets(3)))
def test_more_answers_never_require_more(holders: tuple[int, ...]) -> None:
    round_ = SummaryRound(members(3, 2, 2))
    round_.add(answer(0, 0 in holders))
    round_.add(answer(1, 1 in holders))
    before = round_.require()
    round_.add(answer(2, 2 in holders))
    assert before.issuperset(round_.require())


def test_a_voter_counts_once_and_strangers_never() -> None:
    round_ = SummaryRound(members(3, 2, 2))
    round_.add(answer(0, True))
    round_.add(answer(0, False))
    round_.add(answer(9, True))
    assert (round_.answered, round_.vote) == (1, Vote.PENDING)
    assert round_.applied("r0") == G


def test_refusals_and_other_epochs_are_failures() -> None:
    round_ = SummaryRound(members(3, 2, 2))
    round_.add(Summary("r0", ReplicaStatus.STALE_EPOCH, G, 1, 2))
    round_.add(Summary("r1", ReplicaStatus.OK, G, 1, 2))
    assert round_.vote is Vote.LOST


def test_a_late_answer_still_counts() -> None:
    round_ = SummaryRound(members(3, 2, 2))
    round_.fail("r0")
    round_.fail("r1")
    round_.add(answer(0, True))
    round_.fail("r0")
    round_.fail("unknown")
    round_.add(answer(2, True))
    assert round_.vote is Vote.WON
    assert round_.complete


def test_holders_are_named_fullest_first() -> None:
    round_ = SummaryRound(members(3, 2, 2))
    more = G.add(Gtid(1, 2))
    round_.add(answer(0, True))
    round_.add(Summary("r1", ReplicaStatus.OK, more, 1, 1))
    assert round_.holders(more) == ("n1", "n0")
    assert round_.holders(GtidSet.EMPTY) == ()


@pytest.mark.parametrize(("yes", "no"), [(yes, no) for yes in range(4) for no in range(4) if yes + no <= 3])
def test_vote_table(yes: int, no: int) -> None:
    outcomes = {yes + more >= 2 for more in range(3 - yes - no + 1)}
    expected = Vote.PENDING if len(outcomes) == 2 else Vote.WON if outcomes == {True} else Vote.LOST
    assert tally(voters=3, needed=2, yes=yes, no=no) is expected


@pytest.mark.parametrize(("voters", "read", "write"), [((), 1, 1), (("a", "a"), 1, 1), (("a",), 0, 1), (("a",), 1, 2)])
def test_impossible_members_are_refused(voters: tuple[str, ...], read: int, write: int) -> None:
    with pytest.raises(ValueError, match="voters"):
        Members(1, tuple(ReplicaRef(voter, "n") for voter in voters), read, write)


def test_quorums_that_do_not_intersect_are_known() -> None:
    assert members(3, 2, 2).intersecting
    assert not members(3, 1, 2).intersecting
