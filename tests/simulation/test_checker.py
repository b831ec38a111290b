"""The checker rejects hand-made bad histories, one for each promise, and accepts the good one they are made from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from services.quorum.clock import Version
from tests.simulation.checker import check, rank
from tests.simulation.history import FinalReplica, History, Hit, Level, Search, Write, content_of

QUERY = 12_345
ALL = 1_000


def version(number: int) -> Version:
    return Version(number, 1)


def contents(document_id: str, text: str, passages: int) -> tuple[bytes, ...]:
    return tuple(content_of(document_id, ordinal, text) for ordinal in range(passages))


def hits_of(*writes: Write) -> list[Hit]:
    return [
        Hit(write.document_id, ordinal, write.version or Version.ZERO, content)
        for write in writes
        for ordinal, content in enumerate(write.contents)
    ]


def search(hits: list[Hit], *, level: Level = Level.QUORUM, at_us: int = 500, k: int = ALL, session: int = 9) -> Search:
    ordered = sorted(hits, key=lambda hit: rank(QUERY, hit.document_id, hit.ordinal, hit.content))
    return Search(level, session, QUERY, k, at_us, at_us + 50, tuple(ordered[:k]))


def old() -> Write:
    return Write("a", contents("a", "old", 2), 1, 0, version(10), 100)


def new() -> Write:
    return Write("a", contents("a", "new", 3), 1, 200, version(20), 300)


def other() -> Write:
    return Write("b", contents("b", "b", 2), 2, 0, version(11), 120)


def final(name: str, *, head: int = 20, applied: bytes = b"s", live: str = "x") -> FinalReplica:
    state = frozenset({(live, version(head), ())})
    return FinalReplica(name, applied, {"a": version(head), "b": version(11)}, state)


def good() -> History:
    writes = [old(), new(), other()]
    return History(
        writes=writes,
        searches=[
            search(hits_of(writes[1], writes[2])),
            search(hits_of(writes[0], writes[2]), at_us=150),
            search(hits_of(writes[0], writes[2]), at_us=250),
            search(hits_of(writes[1], writes[2]), at_us=250),
            search(hits_of(writes[1], writes[2]), k=2),
            search(hits_of(writes[1]), level=Level.SESSION, session=1),
            search([], level=Level.ONE),
            replace(search(hits_of(writes[1])), only="a"),
        ],
        final=[final("r0"), final("r1")],
    )


def stale(history: History) -> None:
    history.searches.append(search(hits_of(old(), other())))


def lost(history: History) -> None:
    history.searches.append(search(hits_of(other())))


def resurrected(history: History) -> None:
    history.writes.append(Write("b", (), 2, 200, version(21), 300))
    history.searches.append(search(hits_of(new(), other())))


def k_shortfall(history: History) -> None:
    ranked = search(hits_of(new(), other())).hits
    best = ranked[0].document_id
    history.searches.append(search([hit for hit in ranked if hit.document_id != best], k=1))


def own_write_unseen(history: History) -> None:
    history.searches.append(search(hits_of(old()), level=Level.SESSION, session=1))


def session_goes_back(history: History) -> None:
    history.searches.append(search(hits_of(new()), level=Level.ONE, session=5, at_us=400))
    history.searches.append(search(hits_of(old()), level=Level.SESSION, session=5, at_us=600))


def session_forgets(history: History) -> None:
    history.searches.append(search(hits_of(new()), level=Level.ONE, session=5, at_us=400))
    history.searches.append(search([], level=Level.SESSION, session=5, at_us=600))


def order_reversed(history: History) -> None:
    history.writes.append(Write("a", contents("a", "late", 1), 1, 400, version(15), None))


def shared_version(history: History) -> None:
    history.writes.append(Write("a", contents("a", "twin", 1), 1, 0, version(20), None))


def acked_lost_for_good(history: History) -> None:
    history.final = [final("r0", head=10), final("r1", head=10)]


def not_convergent(history: History) -> None:
    history.final[1] = final("r1", applied=b"t")


def rows_differ_at_equal_sets(history: History) -> None:
    history.views[b"s"] = {frozenset(): "r0", final("r1").live: "r1"}


def never_written(history: History) -> None:
    history.searches.append(search(hits_of(new(), Write("ghost", contents("ghost", "", 1), 0, 0, version(1)))))


def altered_content(history: History) -> None:
    hits = hits_of(new(), other())
    hits[0] = Hit("a", 0, version(20), b"????")
    history.searches.append(search(hits))


def from_the_future(history: History) -> None:
    history.searches.append(search(hits_of(new()), level=Level.ONE, at_us=100))


def lookup_finds_nothing(history: History) -> None:
    history.searches.append(replace(search([]), only="a"))


def lookup_of_another(history: History) -> None:
    history.searches.append(replace(search(hits_of(new(), other())), only="a"))


def doubled_hit(history: History) -> None:
    history.searches.append(search([*hits_of(new(), other()), *hits_of(other())]))


def versions_mixed(history: History) -> None:
    hits = hits_of(old(), other())[:1] + hits_of(new(), other())[1:]
    history.searches.append(search(hits, at_us=250))


def half_a_document(history: History) -> None:
    history.searches.append(search(hits_of(new(), other())[1:], level=Level.ONE))


def lookup_goes_back(history: History) -> None:
    """The second of two lookups shows what was acknowledged, though the first returned something newer."""
    maybe = Write("b", contents("b", "maybe", 1), 2, 350, version(30), None)
    history.writes.append(maybe)
    for hits, at_us in ((hits_of(maybe), 400), (hits_of(other()), 500)):
        history.searches.append(replace(search(hits, level=Level.LINEARIZABLE, at_us=at_us), only="b"))


def written_below_a_lookup(history: History) -> None:
    """A write that began after a lookup returned is ordered before what the lookup returned."""
    maybe = Write("b", contents("b", "maybe", 1), 2, 350, version(30), None)
    history.writes += [maybe, Write("b", contents("b", "late", 1), 3, 600, version(25), None)]
    history.searches.append(replace(search(hits_of(maybe), level=Level.LINEARIZABLE, at_us=400), only="b"))


@pytest.mark.parametrize(
    ("spoil", "name"),
    [
        (stale, "C1"),
        (lost, "C1'"),
        (resurrected, "C1"),
        (k_shortfall, "C1'"),
        (own_write_unseen, "C2"),
        (session_goes_back, "C2"),
        (session_forgets, "C2"),
        (order_reversed, "C3"),
        (shared_version, "C3"),
        (acked_lost_for_good, "C4"),
        (not_convergent, "C4"),
        (rows_differ_at_equal_sets, "C4"),
        (never_written, "C5"),
        (altered_content, "C5"),
        (from_the_future, "C5"),
        (doubled_hit, "C5"),
        (lookup_finds_nothing, "C1'"),
        (lookup_of_another, "C5"),
        (lookup_goes_back, "C6"),
        (written_below_a_lookup, "C3"),
        (versions_mixed, "C7"),
        (half_a_document, "C7"),
    ],
)
def test_bad_history_is_rejected(spoil: Callable[[History], None], name: str) -> None:
    history = good()
    spoil(history)
    assert name in {violation.check for violation in check(history)}


def test_good_history_is_accepted() -> None:
    assert check(good()) == []


def test_uncertain_write_may_show_or_not() -> None:
    history = good()
    maybe = Write("b", contents("b", "maybe", 1), 2, 350, version(30), None)
    history.writes.append(maybe)
    history.final = []
    history.searches += [search(hits_of(new(), maybe)), search(hits_of(new(), other()))]
    assert check(history) == []
