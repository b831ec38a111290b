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


@given(st.lists(st.sampled_from(["arrive", "land", "forget"]), max_size=60))
def test_nobody_is_served_by_an_older_request_or_left_waiting(steps: list[str]) -> None:
    lane: Coalescer[int] = Coalescer()
    sent_at, waiting, flying = 0, {}, False
    for now, step in enumerate(steps):
        if step == "arrive":
            waiting[now] = now
            if lane.arrive(now):
                assert not flying
                flying, sent_at = True, now
        elif step == "forget" and waiting:
            ticket = next(iter(waiting))
            del waiting[ticket]
            lane.forget(ticket)
        elif step == "land" and flying:
            served, flying = lane.landed()
            for ticket in served:
                assert waiting.pop(ticket) <= sent_at
            sent_at = now
    for _ in range(2):
        if flying:
            served, flying = lane.landed()
            for ticket in served:
                del waiting[ticket]
    assert not waiting
