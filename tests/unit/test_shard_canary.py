"""The recall canary: it finds an index that is searched too narrowly, says so once, and rests when all is measured."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import faiss as faiss_module
import numpy as np
import pytest
from numpy.typing import NDArray

from observability import logs
from observability.logs import LogSettings
from services.shard import canary
from services.shard.canary import Canary, recall_of
from services.shard.view_search import Candidates

faiss: Any = faiss_module
DIM, ROWS, LISTS, K = 16, 4_000, 64, 10
SEED = 5


class ManualClock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def wall_ms(self) -> int:
        return int(self.now_s * 1_000)

    def monotonic_s(self) -> float:
        return self.now_s


class SearchedIndex:
    """A real inverted file whose nprobe can be set badly, standing where the production search stands."""

    def __init__(self) -> None:
        rows = unit(np.random.default_rng(SEED).normal(size=(ROWS, DIM)))
        self.rows = rows
        self.index = faiss.index_factory(DIM, f"IVF{LISTS},Flat", faiss.METRIC_INNER_PRODUCT)
        self.index.train(rows)
        self.index.add(rows)
        self.nprobe = LISTS
        self.views: list[tuple[Any, bool]] = []

    def __call__(self, view: Any, queries: NDArray[np.float32], k: int, exact: bool) -> list[Candidates]:
        self.views.append((view, exact))
        if exact:
            scores = queries @ self.rows.T
            found = np.argsort(-scores, axis=1)[:, :k]
        else:
            parameters = faiss.SearchParametersIVF(nprobe=self.nprobe)
            _, found = self.index.search(queries, k, params=parameters)
        lines = [self.rows[row[row >= 0]] @ query for row, query in zip(found, queries, strict=True)]
        return [
            Candidates(-np.sort(-line), np.arange(len(line)), np.zeros(len(line), dtype=np.int16)) for line in lines
        ]


def unit(rows: NDArray[Any]) -> NDArray[np.float32]:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), dtype=np.float32)


def view(*segments: tuple[str, int]) -> Any:
    """A view as far as the canary looks at it: segments with their live rows of 1,000."""
    parts = [SimpleNamespace(segment=SimpleNamespace(name=name, rows=1_000), live=live) for name, live in segments]
    return SimpleNamespace(parts=parts)


@pytest.fixture(scope="module")
def index() -> SearchedIndex:
    return SearchedIndex()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def logged(capsys: pytest.CaptureFixture[str]) -> Iterator[Any]:
    """What the canary has logged so far: a list of events."""
    logs.configure(LogSettings("shard", "test", "info"))

    def events() -> list[dict[str, Any]]:
        logs.shutdown()
        out = capsys.readouterr()
        logs.configure(LogSettings("shard", "test", "info"))
        return [json.loads(line) for line in (out.err + out.out).splitlines() if "recall" in line]

    yield events
    logs.shutdown()


def canary_of(index: SearchedIndex, clock: ManualClock) -> Canary:
    index.nprobe = LISTS
    index.views.clear()
    return Canary("r1", 0.99, clock, rng=random.Random(SEED), search=index)


def queries(count: int, seed: int = 1) -> NDArray[np.float32]:
    return unit(np.random.default_rng(seed).normal(size=(count, DIM)))


def measure_all(subject: Canary, at: Any) -> int:
    steps = 0
    while subject.step(at):
        steps += 1
    return steps


def test_a_bad_nprobe_is_found_and_told_once(index: SearchedIndex, clock: ManualClock, logged: Any) -> None:
    subject = canary_of(index, clock)
    for query in queries(40):
        subject.offer(query[None, :], K)
    measure_all(subject, view(("s1", 1_000)))
    assert subject.reading().recall == 1.0
    assert logged() == []

    index.nprobe = 1
    measure_all(subject, view(("s2", 1_000)))
    low = subject.reading()
    assert low.queries == 40
    assert low.recall < 0.9
    measure_all(subject, view(("s3", 1_000)))
    warned = logged()
    assert [(event["level"], event["event"]) for event in warned] == [("warning", "recall is below its target")]
    assert warned[0]["target"] == 0.99

    index.nprobe = LISTS
    measure_all(subject, view(("s4", 1_000)))
    assert subject.reading().recall == 1.0
    assert [event["level"] for event in logged()] == ["info"]


def test_both_searches_see_the_same_view_object(index: SearchedIndex, clock: ManualClock) -> None:
    subject = canary_of(index, clock)
    subject.offer(queries(1), K)
    searched = view(("s1", 1_000))
    assert subject.step(searched)
    assert [exact for _, exact in index.views] == [False, True]
    assert all(seen is searched for seen, _ in index.views)


def test_it_rests_until_the_index_changes(index: SearchedIndex, clock: ManualClock) -> None:
    subject = canary_of(index, clock)
    for query in queries(5):
        subject.offer(query[None, :], K)
    assert measure_all(subject, view(("s1", 1_000))) == 5
    assert not subject.due(view(("s1", 990)))
    assert subject.due(view(("s1", 500)))
    assert subject.due(view(("s1", 1_000), ("s2", 1_000)))
    clock.now_s += 2.5
    assert subject.reading().age_ms == 2_500
    assert measure_all(subject, view(("s1", 500))) == 5
    assert subject.reading().age_ms == 0


def test_the_sample_is_bounded_and_follows_what_is_asked_now(index: SearchedIndex, clock: ManualClock) -> None:
    subject = canary_of(index, clock)
    old, new = queries(1, seed=1), queries(1, seed=2)
    for _ in range(500):
        subject.offer(old, K)
    for _ in range(5_000):
        subject.offer(np.concatenate([new, new]), K)
    assert measure_all(subject, view(("s1", 1_000))) == canary.SAMPLE_MAX
    assert subject.reading().queries == canary.SAMPLE_MAX
    assert all(np.array_equal(one.query, new[0]) for one in subject._sample)
    assert all(one.query.base is None for one in subject._sample), "a sampled row keeps no batch alive"


def test_without_queries_there_is_no_reading(index: SearchedIndex, clock: ManualClock) -> None:
    subject = canary_of(index, clock)
    subject.offer(queries(3), canary.K_MAX + 1)
    subject.offer(queries(1)[:0], K)
    assert not subject.step(view(("s1", 1_000)))
    reading = subject.reading()
    assert math.isnan(reading.recall)
    assert (reading.queries, reading.age_ms) == (0, 0)


def found(*scores: float) -> Candidates:
    values = np.array(scores, dtype=np.float32)
    return Candidates(values, np.arange(len(values)), np.zeros(len(values), dtype=np.int16))


def test_recall_counts_ties_of_the_last_place_as_found() -> None:
    assert recall_of(found(0.9, 0.8, 0.7), found(0.9, 0.8, 0.7, 0.7), 3) == 1.0
    assert recall_of(found(0.9, 0.7, 0.6), found(0.9, 0.8, 0.7), 3) == pytest.approx(2 / 3)
    assert recall_of(found(0.9), found(0.9, 0.8), 2) == 0.5
    assert recall_of(found(), found(), 10) == 1.0
