"""The batching policy, by example and against its promises."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from services.embed.batching import QUERY_TURNS_MAX, BatchQueue, Lane, Limits

NEVER = float("inf")


def queue(batch: int = 4, places: int = 100, tokens: int = 1_000) -> BatchQueue:
    return BatchQueue(Limits(batch, places, tokens))


def tickets(waiting: BatchQueue) -> list[int]:
    batch = waiting.take()
    assert batch is not None
    return [item.ticket for item in batch.items]


def test_idle_queue_gives_nothing_and_a_single_text_goes_at_once() -> None:
    waiting = queue()
    assert waiting.take() is None
    assert waiting.offer(1, Lane.QUERY, [5], NEVER)
    assert tickets(waiting) == [1]
    assert waiting.take() is None
    assert waiting.texts_waiting == 0


def test_a_batch_is_whatever_waits_up_to_the_maximum() -> None:
    waiting = queue(batch=3)
    for ticket in range(5):
        assert waiting.offer(ticket, Lane.QUERY, [5], NEVER)
    assert tickets(waiting) == [0, 1, 2]
    assert tickets(waiting) == [3, 4]


def test_queries_overtake_passages_and_do_not_share_their_pass() -> None:
    waiting = queue()
    waiting.offer(1, Lane.PASSAGE, [200, 200], NEVER)
    waiting.offer(2, Lane.QUERY, [8], NEVER)
    first = waiting.take()
    assert first is not None
    assert (first.lane, [item.ticket for item in first.items]) == (Lane.QUERY, [2])
    assert tickets(waiting) == [1, 1]


def test_passages_are_not_starved_by_a_stream_of_queries() -> None:
    waiting = queue()
    waiting.offer(0, Lane.PASSAGE, [200], NEVER)
    lanes = []
    for ticket in range(1, QUERY_TURNS_MAX + 2):
        waiting.offer(ticket, Lane.QUERY, [8], NEVER)
        batch = waiting.take()
        assert batch is not None
        lanes.append(batch.lane)
    assert lanes == [Lane.QUERY] * QUERY_TURNS_MAX + [Lane.PASSAGE]


def test_a_small_request_is_not_behind_the_whole_of_a_big_one() -> None:
    waiting = queue(batch=4)
    waiting.offer(1, Lane.PASSAGE, [10] * 20, NEVER)
    waiting.offer(2, Lane.PASSAGE, [10, 10], NEVER)
    assert sorted(tickets(waiting)) == [1, 1, 2, 2]


def test_longest_first_within_a_request_and_within_a_pass() -> None:
    waiting = queue(batch=2)
    waiting.offer(1, Lane.PASSAGE, [10, 30, 20, 40], NEVER)
    batch = waiting.take()
    assert batch is not None
    assert [(item.index, item.tokens) for item in batch.items] == [(3, 40), (1, 30)]


def test_padded_tokens_bound_a_pass_but_one_long_text_still_goes() -> None:
    waiting = queue(batch=10, tokens=100)
    waiting.offer(1, Lane.PASSAGE, [500, 50, 50, 50], NEVER)
    sizes = []
    while (batch := waiting.take()) is not None:
        sizes.append(len(batch.items))
    assert sizes == [1, 2, 1]


def test_a_full_queue_refuses_the_whole_request() -> None:
    waiting = queue(places=3)
    assert waiting.offer(1, Lane.QUERY, [5, 5], NEVER)
    assert not waiting.offer(2, Lane.PASSAGE, [5, 5], NEVER)
    assert waiting.texts_waiting == 2
    assert waiting.offer(3, Lane.PASSAGE, [5], NEVER)


def test_withdrawn_and_late_requests_free_their_places_and_never_run() -> None:
    waiting = queue()
    waiting.offer(1, Lane.QUERY, [5, 5], 10.0)
    waiting.offer(2, Lane.PASSAGE, [5], 20.0)
    waiting.offer(3, Lane.QUERY, [5], 30.0)
    assert waiting.withdraw(3) == 1
    assert waiting.withdraw(3) == 0
    assert waiting.late(9.9) == ()
    assert waiting.late(10.0) == (1,)
    assert waiting.texts_waiting == 1
    assert tickets(waiting) == [2]


REQUESTS = st.lists(
    st.tuples(st.sampled_from(Lane), st.lists(st.integers(1, 300), min_size=1, max_size=12)), max_size=20
)


@given(REQUESTS, st.integers(1, 8), st.integers(1, 600), st.integers(1, 80))
def test_every_accepted_text_is_served_exactly_once_within_the_bounds(
    requests: list[tuple[Lane, list[int]]], batch_max: int, tokens_max: int, places: int
) -> None:
    waiting = queue(batch_max, places, tokens_max)
    wanted: Counter[tuple[int, int, Lane]] = Counter()
    for ticket, (lane, tokens) in enumerate(requests):
        before = waiting.texts_waiting
        accepted = waiting.offer(ticket, lane, tokens, NEVER)
        assert accepted == (before + len(tokens) <= places)
        assert waiting.texts_waiting == before + (len(tokens) if accepted else 0)
        if accepted:
            wanted.update((ticket, index, lane) for index in range(len(tokens)))
    served: Counter[tuple[int, int, Lane]] = Counter()
    while (batch := waiting.take()) is not None:
        lengths = [item.tokens for item in batch.items]
        assert 1 <= len(lengths) <= batch_max
        assert len(lengths) == 1 or max(lengths) * len(lengths) <= tokens_max
        assert lengths == sorted(lengths, reverse=True)
        served.update((item.ticket, item.index, batch.lane) for item in batch.items)
    assert served == wanted
    assert waiting.texts_waiting == 0


@given(st.lists(st.integers(1, 30), min_size=2, max_size=6), st.integers(1, 5))
def test_requests_of_a_lane_advance_together(sizes: list[int], batch_max: int) -> None:
    waiting = queue(batch_max, 1_000, 100_000)
    for ticket, size in enumerate(sizes):
        waiting.offer(ticket, Lane.PASSAGE, [10] * size, NEVER)
    served: Counter[int] = Counter()
    while (batch := waiting.take()) is not None:
        served.update(item.ticket for item in batch.items)
        unfinished = [served[ticket] for ticket, size in enumerate(sizes) if served[ticket] < size]
        assert not unfinished or max(unfinished) - min(unfinished) <= 1
