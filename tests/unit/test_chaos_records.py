"""The parts of the chaos run that decide: schedule, situations, versions that no client was told, ranks."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np

from ostraka.results import Passage
from ostraka.results import Version as ClientVersion
from ostraka.v1 import passage_pb2
from services.quorum.clock import Version
from services.shard import schema
from services.shard.engine import DATABASE_FILE
from services.shard.store import Database
from tests.chaos.actions import ACTIONS
from tests.chaos.corpus import VECTORS, Corpus, text_of, vector_of
from tests.chaos.disk_watch import DiskWatch
from tests.chaos.recorder import Recorder
from tests.chaos.schedule import Episode, episodes
from tests.chaos.situation import HEALING, NOTHING, ONE_VOTER_DOWN, OTHER, Calls, Situation
from tests.simulation.checker import check
from tests.simulation.history import Hit, Level, Search, Write

ROUNDS = 20
HOLD_S_MAX = 5.0


def planned(seed: int) -> list[Episode]:
    return list(islice(episodes(seed, ACTIONS, HOLD_S_MAX), ROUNDS * len(ACTIONS)))


def test_a_schedule_follows_from_its_seed() -> None:
    assert list(map(str, planned(1))) == list(map(str, planned(1)))
    assert list(map(str, planned(1))) != list(map(str, planned(2)))


def test_every_action_comes_once_before_any_comes_again() -> None:
    drawn = [type(timed.fault) for episode in planned(3) for timed in episode.faults]
    for start in range(0, len(drawn) - len(ACTIONS), len(ACTIONS)):
        assert set(drawn[start : start + len(ACTIONS)]) == set(ACTIONS)


def test_faults_that_overlap_touch_different_processes() -> None:
    pairs = [episode.faults for episode in planned(4) if len(episode.faults) == 2]
    assert pairs
    for one, other in pairs:
        assert not one.fault.touches & other.fault.touches
        assert other.from_s <= one.to_s
        assert one.to_s - one.from_s <= HOLD_S_MAX


def test_what_a_situation_is_called() -> None:
    situation = Situation()
    assert situation.kind == NOTHING
    situation.begin("kill a", ["a"], only_voters=True)
    assert situation.kind == ONE_VOTER_DOWN
    situation.begin("stop a", ["a"], only_voters=True)
    assert situation.kind == ONE_VOTER_DOWN
    situation.begin("kill b", ["b"], only_voters=True)
    assert situation.kind == OTHER
    situation.end("kill b")
    situation.begin("slow", [], only_voters=False)
    assert situation.kind == OTHER
    for name in ("slow", "kill a", "stop a"):
        situation.end(name)
    situation.healing = True
    assert situation.kind == HEALING


def test_a_call_that_a_fault_interrupts_is_counted_with_the_fault() -> None:
    calls = Calls()
    calls.add(NOTHING, ONE_VOTER_DOWN, "late")
    calls.add(ONE_VOTER_DOWN, NOTHING, "")
    calls.add(ONE_VOTER_DOWN, OTHER, "its router died, too")
    assert calls.share(ONE_VOTER_DOWN) == 0.5
    assert calls.share(NOTHING) == 1.0


def content(name: str, vector: int = 7) -> bytes:
    return text_of(name, vector).encode()


def test_writes_that_nobody_answered_get_the_versions_that_disks_have() -> None:
    recorder = Recorder(Corpus(1))
    lost = recorder.begin("d", (content("1.1/0"),), 1, "")
    never = recorder.begin("d", (content("1.2/0"),), 1, "")
    deleted = recorder.begin("d", (), 1, "1.3")
    recorder.settle({("d", "1.3"): frozenset({Version(30, 1)})}, [("d", content("1.1/0"), Version(10, 1))])
    assert (lost.version, never.version, deleted.version) == (Version(10, 1), None, Version(30, 1))


def test_a_version_that_the_disks_have_lost_again_is_known_from_a_look_or_from_an_answer() -> None:
    recorder = Recorder(Corpus(1))
    looked, answered = (recorder.begin("d", (content(name), content(f"{name}+")), 1, "") for name in ("1.1/0", "1.2/0"))
    repeated = recorder.begin("d", (content("1.3/0"),), 1, "key")
    recorder.sighted([("d", content("1.1/0+"), Version(10, 1)), ("d", content("1.3/0"), Version(30, 1))])
    text = content("1.2/0+").decode()
    passage = Passage("d#1", "d", 1, "", text, "", 0, len(text), {}, b"", ClientVersion(20, 1), False, None)
    recorder.looked_up(Level.QUORUM, 1, "d", 0, [passage])
    recorder.settle({("d", "key"): frozenset({Version(40, 2)})}, [])
    assert (looked.version, answered.version) == (Version(10, 1), Version(20, 1))
    assert {each.version for each in recorder.history.writes if each.contents == repeated.contents} == {
        Version(30, 1),
        Version(40, 2),
    }


def test_a_write_without_a_key_has_one_version() -> None:
    recorder = Recorder(Corpus(1))
    recorder.begin("d", (content("1.1/0"),), 1, "")
    recorder.sighted([("d", content("1.1/0"), Version(10, 1)), ("d", content("1.1/0"), Version(20, 1))])
    recorder.settle({}, [])
    hit = Hit("d", 0, Version(20, 1), content("1.1/0"))
    recorder.history.searches.append(Search(Level.QUORUM, 1, 0, 10, 100, 200, (hit,)))
    assert "C5" in [violation.check for violation in check(recorder.history, recorder.corpus.rank)]


def test_a_look_finds_what_is_new_in_any_database(tmp_path: Path) -> None:
    directory = tmp_path / "node-a" / "0a"
    directory.mkdir(parents=True)
    watch = DiskWatch(tmp_path, Recorder(Corpus(1)), 1_000)
    (directory / DATABASE_FILE).write_text("lost")
    assert watch.look() == []
    (directory / DATABASE_FILE).unlink()
    database = Database(directory / DATABASE_FILE, writable=True)
    for table in schema.TABLES:
        database.rows(table)

    def put(version: Version, text: str) -> None:
        payload = passage_pb2.Passage(text=text).SerializeToString()
        row = ("d", schema.to_sql(version.hlc), schema.to_sql(version.source), payload)
        insert = (
            "INSERT INTO passages (document, ordinal, hlc, src, vec, payload, sum) VALUES (?, 0, ?, ?, x'', ?, x'')"
        )
        database.rows(insert, row)

    put(Version(10, 1), "first")
    assert watch.look() == [("d", b"first", Version(10, 1))]
    database.rows("DELETE FROM passages")
    put(Version(20, 1), "second")
    assert watch.look() == [("d", b"second", Version(20, 1))]
    assert watch.look() == []
    database.close()


def test_a_repetition_with_a_version_of_its_own_is_a_second_write() -> None:
    recorder = Recorder(Corpus(1))
    write = recorder.begin("d", (), 1, "key")
    recorder.told(write, ClientVersion(10, 1))
    recorder.acknowledged(write, ClientVersion(20, 2))
    recorder.settle({("d", "key"): frozenset({Version(10, 1), Version(20, 2)})}, [])
    assert [(each.version, each.acked_us is not None) for each in recorder.history.writes] == [
        (Version(10, 1), False),
        (Version(20, 2), True),
    ]


def test_what_was_refused_for_certain_may_not_be_found() -> None:
    recorder = Recorder(Corpus(1))
    refused = recorder.begin("d", (content("1.1/0"),), 1, "")
    recorder.forget(refused)
    recorder.settle({}, [("d", content("1.1/0"), Version(10, 1))])
    hit = Hit("d", 0, Version(10, 1), content("1.1/0"))
    recorder.history.searches.append(Search(Level.QUORUM, 1, 0, 10, 100, 200, (hit,)))
    assert [violation.check for violation in check(recorder.history, recorder.corpus.rank)] == ["C5"]


def test_the_checker_judges_by_the_ranking_it_is_given() -> None:
    corpus = Corpus(2)
    contents = tuple(content(f"1.1/{ordinal}", ordinal) for ordinal in range(3))
    best = max(range(3), key=lambda ordinal: corpus.score(0, contents[ordinal]))
    for shown in range(3):
        recorder = Recorder(corpus)
        recorder.history.writes.append(Write("d", contents, 1, 0, Version(10, 1), 50))
        hit = Hit("d", shown, Version(10, 1), contents[shown])
        recorder.history.searches.append(Search(Level.QUORUM, 1, 0, 1, 100, 200, (hit,)))
        assert bool(check(recorder.history, corpus.rank)) == (shown != best)


def test_scores_are_cosines() -> None:
    corpus = Corpus(3)
    vector, query = corpus.vectors[5], corpus.queries[1]
    cosine = float(vector @ query / np.linalg.norm(vector) / np.linalg.norm(query))
    assert vector_of(content("x", VECTORS - 1)) == VECTORS - 1
    assert abs(corpus.score(1, content("x", 5)) - cosine) < 1e-3
