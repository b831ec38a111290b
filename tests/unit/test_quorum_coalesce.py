"""An operation is served only by a request that was sent after it arrived."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from services.quorum.coalesce import Coalescer


def test_arrivals_during_a_flight_share_the_next() -> None:
    lane: Coalescer[str] = Coalescer()
    assert lane.arrive("a")
    assert not lane.arrive("b")
    assert not lane.arrive("c")
    assert lane.in_flight() == ("a",)
    assert lane.landed() == (("a",), True)
    assert lane.in_flight() == ("b", "c")
    assert lane.landed() == (("b", "c"), False)
    assert lane.arrive("d")


def test_forgotten_operations_cost_no_flight() -> None:
    lane: Coalescer[str] = Coalescer()
    lane.arrive("a")
    lane.arrive("b")
    lane.forget("a")
    lane.forget("b")
    assert not lane.arrive("c")
    assert lane.landed() == ((), True)
    assert lane.landed() == (("c",), False)


def test_who_comes_before_the_next_request_is_sent_rides_along() -> None:
    lane: Coalescer[str] = Coalescer()
    lane.arrive("a")
    lane.arrive("b")
    assert lane.landed() == (("a",), True)
    assert not lane.arrive("c")
    lane.board()
    assert not lane.arrive("d")
    assert lane.landed() == (("b", "c"), True)


def test_another_answer_serves_whom_it_was_asked_for_after() -> None:
    lane: Coalescer[int] = Coalescer()
    lane.arrive(1)
    lane.arrive(2)
    lane.arrive(3)
    assert lane.take(lambda number: number <= 2) == (1, 2)
    assert lane.in_flight() == ()
    assert lane.landed() == ((), True)
    assert lane.landed() == ((3,), False)


@given(st.lists(st.sampled_from(["arrive", "land", "send", "forget"]), max_size=60))
def test_nobody_is_served_by_an_older_request_or_left_waiting(steps: list[str]) -> None:
    """A request that is due after a landing is sent at any time after it."""
    lane: Coalescer[int] = Coalescer()
    waiting: set[int] = set()
    sent_at: int | None = None
    due = False
    for now, step in enumerate([*steps, "send", "land", "send", "land"]):
        if step == "arrive":
            waiting.add(now)
            if lane.arrive(now):
                assert sent_at is None
                assert not due
                sent_at = now
        elif step == "forget" and waiting:
            ticket = waiting.pop()
            lane.forget(ticket)
        elif step == "send" and due:
            lane.board()
            due, sent_at = False, now
        elif step == "land" and sent_at is not None:
            served, due = lane.landed()
            assert set(served) <= {ticket for ticket in waiting if ticket <= sent_at}
            waiting.difference_update(served)
            sent_at = None
    assert not waiting
