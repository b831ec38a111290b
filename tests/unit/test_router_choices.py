"""Whom to ask, how often to hedge, what to remember."""

from __future__ import annotations

from services.router.node_choice import HEDGE_AFTER_S_MAX, SUSPECT_S, HedgeBudget, HedgePace, NodeBook
from services.router.query_cache import QueryCache


def test_calls_spread_over_equal_nodes() -> None:
    book = NodeBook(["a", "b", "c"])
    chosen = []
    for _ in range(9):
        node = book.ranked(0.0)[0]
        chosen.append(node)
        book.sent(node)
        book.released(node)
    assert {node: chosen.count(node) for node in "abc"} == {"a": 3, "b": 3, "c": 3}


def test_the_node_with_less_under_way_comes_first() -> None:
    book = NodeBook(["a", "b"])
    book.sent("a")
    assert book.ranked(0.0) == ["b", "a"]
    book.sent("b")
    book.sent("b")
    assert book.ranked(0.0) == ["a", "b"]


def test_a_silent_node_is_tried_last_until_it_answers_or_time_passes() -> None:
    book = NodeBook(["a", "b"])
    book.silent("a", 10.0)
    assert book.ranked(10.0) == ["b", "a"]
    assert book.avoided("a", 10.0)
    book.heard("a", 10.1)
    assert book.ranked(10.1) == ["a", "b"]
    book.silent("a", 11.0)
    assert book.ranked(11.0 + SUSPECT_S) == ["a", "b"]


def test_slowness_is_forgiven_to_a_node_that_answered_another_call_meanwhile() -> None:
    book = NodeBook(["a", "b"])
    book.heard("a", 5.0)
    book.silent("a", 6.0, since_s=4.0)
    assert not book.avoided("a", 6.0)
    book.silent("a", 6.0, since_s=5.5)
    assert book.avoided("a", 6.0)


def test_an_answer_does_not_clear_a_node_that_is_behind() -> None:
    book = NodeBook(["a", "b"])
    book.behind("a", 1.0)
    book.heard("a", 1.1)
    assert book.avoided("a", 1.1)


def test_hedges_are_a_share_of_the_legs() -> None:
    budget = HedgeBudget(share=0.5, saved_max=2.0)
    assert [budget.spend() for _ in range(3)] == [True, True, False]
    budget.earn()
    assert not budget.spend()
    budget.earn()
    assert budget.spend()


def test_the_least_recently_used_query_makes_room() -> None:
    cache: QueryCache[int] = QueryCache(2)
    cache.put("m", "1", "x", 1)
    cache.put("m", "1", "y", 2)
    assert cache.get("m", "1", "x") == 1
    cache.put("m", "1", "z", 3)
    assert cache.get("m", "1", "y") is None
    assert (cache.get("m", "1", "x"), cache.get("m", "1", "z")) == (1, 3)
    assert cache.get("m", "2", "x") is None
    assert (cache.hits, cache.misses, len(cache)) == (3, 2, 2)


def test_a_cache_of_no_entries_keeps_nothing() -> None:
    cache: QueryCache[int] = QueryCache(0)
    cache.put("m", "", "x", 1)
    assert cache.get("m", "", "x") is None


def test_the_pace_of_hedging_follows_the_mesh() -> None:
    pace = HedgePace()
    assert pace.hedge_after_s(0.15) == 0.15
    for _ in range(50):
        pace.observe(0.02)
    assert pace.hedge_after_s(0.0) < 0.05
    assert pace.hedge_after_s(0.15) == 0.15
    for latency_s in (0.1, 0.2, 0.1, 0.2) * 20:
        pace.observe(latency_s)
    assert 0.2 < pace.hedge_after_s(0.15) <= 0.45
    for _ in range(50):
        pace.observe(5.0)
    assert pace.hedge_after_s(0.15) == HEDGE_AFTER_S_MAX
