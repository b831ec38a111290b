"""Shadow searches leave no trace, the verdict counts what it says, and only Ostraka's rule is never wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.quorum.clock import Version
from tests.simulation.checker import check, rank
from tests.simulation.history import History, Hit, Level, Search, Write, content_of
from tests.simulation.read_rules.plot import draw
from tests.simulation.read_rules.report import document
from tests.simulation.read_rules.rules import OURS, RULES, Done, Reply, digest_equality
from tests.simulation.read_rules.schedule import run_with_faults
from tests.simulation.read_rules.shadow import ReadRouter, Stream
from tests.simulation.read_rules.tally import compare_under_faults, compare_under_ingest
from tests.simulation.read_rules.verdict import Judge, Wrong
from tests.simulation.timeline import MS, Timeline

SEEDS = range(6)
CONFIG = "3/2/2"
QUERY = 12_345


@pytest.mark.parametrize("seed", [0, 3])
def test_no_search_changes_what_is_written(seed: int) -> None:
    alone, _ = run_with_faults(seed, CONFIG, {})
    assert any(write.acked_us is not None for write in alone.writes)
    together, reads = run_with_faults(seed, CONFIG, RULES)
    assert together == alone, "writes, versions, acknowledgement times and published states"
    for name, rule in RULES.items():
        by_itself, of_rule = run_with_faults(seed, CONFIG, {name: rule})
        assert by_itself == alone
        assert of_rule[name] == reads[name], f"{name} finds something else when others search too"


def test_every_rule_is_asked_the_same_at_the_same_moments() -> None:
    _, reads = run_with_faults(1, CONFIG, RULES)
    assert len({of_rule.issued for of_rule in reads.values()}) == 1
    moments = {(search.invoked_us, search.query, search.k) for of_rule in reads.values() for search in of_rule.answered}
    assert len(moments) <= next(iter(reads.values())).issued


def test_only_ostraka_is_never_wrong() -> None:
    *_, faults = compare_under_faults(SEEDS, CONFIG)
    assert faults.schedules == len(SEEDS)
    wrong = {name: tally.wrong for name, tally in faults.rules.items()}
    assert wrong.pop(OURS) == Wrong()
    for name, of_rule in wrong.items():
        assert of_rule, f"{name} was never wrong in {len(SEEDS)} schedules"
    assert wrong["one replica"].stale
    assert wrong["one replica"].resurrected
    assert wrong["union of R"].resurrected
    assert wrong["intersection of R"] == Wrong(missing=wrong["intersection of R"].missing)
    assert wrong["digest equality"] == Wrong(missing=wrong["digest equality"].missing)
    assert min(tally.answered for tally in faults.rules.values()) > 100 * len(SEEDS)


def test_what_is_wrong_breaks_a_promise_of_the_checker_too() -> None:
    history, reads = run_with_faults(0, CONFIG, RULES)
    judge, seen = Judge(history.writes), 0
    for of_rule in reads.values():
        for search in of_rule.answered:
            if judge.judge(search):
                assert check(History(history.writes, [search])), search
                seen += 1
    assert seen > 10


def test_equal_digests_are_right_and_only_the_fallback_is_wrong() -> None:
    def matched(router: ReadRouter, query: int, k: int, done: Done) -> None:
        def direct(reply: Reply | None) -> None:
            done(reply if reply is not None and reply.direct else None)

        digest_equality(router, query, k, direct)

    for seed in SEEDS:
        history, reads = run_with_faults(seed, CONFIG, {"matched": matched})
        judge = Judge(history.writes)
        assert reads["matched"].answered
        assert not any(judge.judge(search) for search in reads["matched"].answered)


def test_without_faults_digests_differ_more_often_than_ostraka_asks_again() -> None:
    calm, busy = compare_under_ingest(2, (5, 500))
    assert calm.matched > busy.matched
    assert 1 - busy.matched > busy.again >= busy.waited
    assert busy.replica_searches[0] > busy.replica_searches[1] >= 1


def test_the_document_and_the_plot_are_the_same_each_time(tmp_path: Path) -> None:
    made = []
    for name in ("one.svg", "two.svg"):
        (faults,) = compare_under_faults([2], CONFIG)
        ingest = list(compare_under_ingest(1, (50, 100)))
        draw(tmp_path / name, faults, ingest)
        made.append((document("make read-rules", "2 to 2", [faults], ingest), (tmp_path / name).read_bytes()))
    assert made[0] == made[1]
    assert all(f"| {name} |" in made[0][0] for name in RULES)


def test_a_stream_shares_the_time_and_not_the_chance() -> None:
    main = Timeline(7)
    expected = Timeline(7).random.random()
    stream, seen = Stream(main, "7/x"), list[int]()
    stream.random.random()
    stream.after(5 * MS, lambda: seen.append(stream.now_us))
    main.run_until(9 * MS)
    assert seen == [5 * MS]
    assert stream.now_us == main.now_us
    assert main.random.random() == expected


# The verdict, on hand-made histories.


def write(document_id: str, number: int, passages: int, invoked_us: int, acked_us: int | None) -> Write:
    contents = tuple(content_of(document_id, ordinal, str(number)) for ordinal in range(passages))
    return Write(document_id, contents, 1, invoked_us, Version(number, 1), acked_us)


def hits(*writes: Write) -> list[Hit]:
    found = [
        Hit(entry.document_id, ordinal, entry.version or Version.ZERO, content)
        for entry in writes
        for ordinal, content in enumerate(entry.contents)
    ]
    return sorted(found, key=lambda hit: rank(QUERY, hit.document_id, hit.ordinal, hit.content))


def verdict(writes: list[Write], found: list[Hit], k: int = 1_000, at_us: int = 500) -> Wrong:
    return Judge(writes).judge(Search(Level.QUORUM, 1, QUERY, k, at_us, at_us + 50, tuple(found)))


OLD, NEW, OTHER = write("a", 10, 2, 0, 100), write("a", 20, 3, 200, 300), write("b", 11, 2, 0, 120)
GONE = write("a", 30, 0, 310, 320)
UNDER_WAY = write("a", 40, 1, 490, None)
LATER = write("a", 50, 1, 600, 700)


def test_a_right_search_is_not_wrong() -> None:
    assert verdict([OLD, NEW, OTHER], hits(NEW, OTHER)) == Wrong()
    assert verdict([OLD, NEW, OTHER], hits(NEW, OTHER)[:2], k=2) == Wrong()
    assert verdict([OLD, NEW, OTHER, LATER], hits(NEW, OTHER)) == Wrong()
    assert verdict([OLD, NEW, OTHER], hits(OLD, OTHER), at_us=250) == Wrong(), "the newer one is not acknowledged yet"
    assert verdict([OLD, NEW, GONE, OTHER], hits(OTHER)) == Wrong()


def test_rows_below_a_live_floor_are_stale() -> None:
    assert verdict([OLD, NEW, OTHER], hits(OLD, OTHER)) == Wrong(stale=2)


def test_rows_below_an_acknowledged_delete_are_resurrected() -> None:
    assert verdict([OLD, NEW, GONE, OTHER], hits(NEW, OTHER)) == Wrong(resurrected=3)


def test_what_is_under_way_may_show_or_not() -> None:
    assert verdict([OLD, NEW, OTHER, UNDER_WAY], hits(UNDER_WAY, OTHER)) == Wrong()
    assert verdict([OLD, NEW, OTHER, UNDER_WAY], hits(NEW, OTHER)) == Wrong()
    assert verdict([OLD, NEW, OTHER, UNDER_WAY], hits(OTHER)) == Wrong(missing=1), "the more lenient of two versions"
    deleting = write("a", 40, 0, 490, None)
    assert verdict([OLD, NEW, OTHER, deleting], hits(OTHER)) == Wrong()


def test_rows_that_belong_among_the_best_are_missing() -> None:
    best = hits(NEW, OTHER)
    assert verdict([OLD, NEW, OTHER], hits(OTHER)) == Wrong(missing=3)
    assert verdict([OLD, NEW, OTHER], best[1:3], k=2) == Wrong(missing=1)
    assert verdict([OLD, NEW, OTHER], [], k=2) == Wrong(missing=2)
    assert verdict([OLD, NEW, OTHER], best[:1], k=2) == Wrong(missing=1)


def test_a_short_result_lacks_what_would_fill_it() -> None:
    """The delete under way makes the document's absence right, and then the next best has its place."""
    deleting = [write(entry.document_id, 40, 0, 490, None) for entry in (NEW, OTHER)]
    third = write("c", 12, 1, 0, 130)
    assert verdict([NEW, OTHER, third, *deleting], hits(third), k=2) == Wrong()
    assert verdict([NEW, OTHER, third, *deleting], [], k=2) == Wrong(missing=1)
