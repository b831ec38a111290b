"""Which answer counts, and what is asked next when none does."""

from __future__ import annotations

from services.quorum.gtid import Gtid, GtidSet
from services.quorum.members import Members, ReplicaRef
from services.quorum.replica import Summary
from services.quorum.search import Accept, FreshRound, Leg, QuorumSearch, Unavailable, Wait
from services.quorum.status import ReplicaStatus

A, B, C = (ReplicaRef(name, f"node-{name}") for name in "abc")
MEMBERS = Members(1, (A, B, C), 2, 2)
G1, G2 = GtidSet.of(Gtid(1, 1)), GtidSet.of(Gtid(1, 2))
BOTH = G1.union(G2)
NONE = GtidSet.EMPTY
OK, SHORT = ReplicaStatus.OK, ReplicaStatus.NOT_COVERED


def told(replica: ReplicaRef, applied: GtidSet) -> Summary:
    return Summary(replica.replica_id, OK, applied, 0, 1)


def answered(search: QuorumSearch, leg: Leg, view: GtidSet, status: ReplicaStatus = OK) -> int | None:
    return search.leg_answered(leg.replica.replica_id, status, view, 0, leg.require, epoch=1)


def quorum() -> tuple[QuorumSearch, Leg]:
    search = QuorumSearch(MEMBERS, (A, B, C))
    return search, search.first()


def test_view_counts_as_its_voters_summary() -> None:
    search, leg = quorum()
    assert (leg.replica, leg.require, leg.role) == (A, NONE, "primary")
    answered(search, leg, G1)
    assert isinstance(search.decide(), Wait)
    search.summary(told(B, G1))
    assert search.decide() == Accept(0)


def test_view_without_an_acknowledged_batch_is_not_accepted() -> None:
    search, leg = quorum()
    answered(search, leg, NONE)
    search.summary(told(B, G1))
    retry = search.decide()
    assert isinstance(retry, Leg)
    assert (retry.replica, retry.require, retry.holders, retry.role) == (B, G1, ("node-b",), "retry")
    index = answered(search, retry, G1)
    assert search.decide() == Accept(1)
    assert index == 1


def test_a_third_voice_can_make_a_refused_view_good() -> None:
    search, leg = quorum()
    answered(search, leg, NONE)
    search.summary(told(B, G1))
    search.summary(told(C, NONE))
    assert search.decide() == Accept(0), "one holder of three cannot have been acknowledged at W = 2"


def test_hedge_goes_to_somebody_else_once() -> None:
    search, _ = quorum()
    hedge, second, third = search.hedge(), search.hedge(), search.hedge()
    assert hedge is not None
    assert (hedge.replica, hedge.role) == (B, "hedge")
    assert second is not None
    assert second.replica == C
    assert third is None
    assert search.hedges == 2


def test_failed_leg_is_replaced_before_the_round_is_won() -> None:
    search, leg = quorum()
    search.leg_failed("a", "refused")
    again = search.decide()
    assert isinstance(again, Leg)
    assert (leg.replica, again.replica, search.retries) == (A, B, 1)


def test_undeliverable_batch_is_asked_about_again_and_then_dropped() -> None:
    search, leg = quorum()
    answered(search, leg, NONE)
    search.summary(told(C, G1))  # and then C dies
    search.summary_failed("b")
    to_c = search.decide()
    assert isinstance(to_c, Leg)
    assert to_c.replica == C
    search.leg_failed("c", "gone")
    to_a = search.decide()
    assert isinstance(to_a, Leg)
    assert (to_a.replica, to_a.require) == (A, G1)
    answered(search, to_a, NONE, SHORT)
    to_b = search.decide()
    assert isinstance(to_b, Leg)
    answered(search, to_b, NONE, SHORT)
    assert isinstance(search.decide(), FreshRound)
    search.begin_round()
    search.summary(told(A, NONE))
    search.summary(told(B, NONE))
    search.summary_failed("c")
    assert search.decide() == Accept(0), "an old view suffices once the batch is known not to have been acknowledged"


def test_fresh_rounds_end() -> None:
    search, leg = quorum()
    answered(search, leg, NONE)
    for _ in range(10):
        search.summary(told(A, NONE))
        search.summary(told(B, G1))
        decision = search.decide()
        while isinstance(decision, Leg):
            answered(search, decision, NONE, SHORT)
            decision = search.decide()
        if isinstance(decision, Unavailable):
            assert search.rounds == 3
            return
        assert isinstance(decision, FreshRound)
        search.begin_round()
    raise AssertionError("never gave up")


def test_lost_round_is_unavailable_even_with_an_answer() -> None:
    search, leg = quorum()
    answered(search, leg, BOTH)
    search.summary_failed("b")
    search.summary_failed("c")
    assert isinstance(search.decide(), Unavailable)


def test_session_needs_no_round() -> None:
    search = QuorumSearch(MEMBERS, (A, B, C), require=G2)
    leg = search.first()
    assert (leg.require, leg.holders) == (G2, ("node-a", "node-b", "node-c"))
    answered(search, leg, G1, SHORT)
    retry = search.decide()
    assert isinstance(retry, Leg)
    answered(search, retry, BOTH)
    assert search.decide() == Accept(0)


def test_session_beyond_everyone_is_unavailable() -> None:
    search = QuorumSearch(MEMBERS, (A,), require=G2)
    answered(search, search.first(), NONE, SHORT)
    decision = search.decide()
    assert isinstance(decision, Unavailable)
    assert "NOT_COVERED" in decision.reason


def test_one_accepts_anything() -> None:
    search = QuorumSearch(MEMBERS, (A, B), require=NONE)
    answered(search, search.first(), NONE)
    assert search.decide() == Accept(0)


def test_retry_prefers_who_lacks_least() -> None:
    search, leg = quorum()
    answered(search, leg, NONE)
    search.summary_failed("b")
    search.summary(told(C, BOTH))
    retry = search.decide()
    assert isinstance(retry, Leg)
    assert (retry.replica, retry.require) == (C, BOTH)
