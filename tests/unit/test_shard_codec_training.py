"""One look of the training task: who trains, why, and what becomes of the result."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from services.shard import codec_training
from services.shard.codec_sources import SampleError
from services.shard.codec_training import FIT_EVERY_ROUNDS, CodecTraining, Subject
from services.shard.codecs import CodecRecord, CodecStore
from services.shard.faiss_index import Kind
from services.shard.node_codecs import index_family
from tests.unit.shard_rows import DIM, FixedClock

ROWS_MIN = 500
ORDER = ("n1", "n2")
KIND = index_family(Kind.IVF_PQ_FASTSCAN, DIM)
BLANK = CodecRecord(generation=7, sha256="", factory="", trained_rows=700, basis_rows=700)


@dataclass
class Rows:
    """Stands for the collection's shards."""

    live: dict[int, int]
    draw: Callable[[int], NDArray[np.float32]]
    failure: str = ""
    collection: str = "docs"
    dim: int = DIM
    sampled: list[int] = field(default_factory=list)
    before_sample: Callable[[], None] = lambda: None

    async def rows_live(self) -> dict[int, int]:
        if self.failure:
            raise SampleError(self.failure)
        return dict(self.live)

    async def sample(self, live: Mapping[int, int], rows: int) -> NDArray[np.float16]:
        assert live == self.live
        self.before_sample()
        self.sampled.append(rows)
        return self.draw(min(rows, sum(live.values()))).astype(np.float16)


def spread(rows: int) -> NDArray[np.float32]:
    return np.random.default_rng(rows).standard_normal((rows, DIM)).astype(np.float32)


def near(rows: int) -> NDArray[np.float32]:
    """Rows of one small neighbourhood."""
    return np.float32(1.0) + np.float32(0.01) * spread(rows)


def subject_of(directory: Path, rows: Rows) -> Subject:
    store = CodecStore(directory, "docs", KIND, DIM)
    return Subject(rows, store, ORDER)  # type: ignore[arg-type] # it is asked for no more than this


def training(subject: Subject, me: str = "n1", heard_s: dict[str, float] | None = None) -> CodecTraining:
    return CodecTraining(
        me,
        [subject],
        heard_s or {},
        FixedClock(100_000),
        rows_min=ROWS_MIN,
        silent_s=10,
        interval_s=1,
        trained=lambda _: None,
    )


async def test_the_first_codec_comes_with_enough_rows_over_all_shards(tmp_path: Path) -> None:
    rows = Rows({0: 300, 1: 199}, spread)
    subject = subject_of(tmp_path, rows)
    task = training(subject)
    assert not await task.look(subject)
    rows.live = {0: 300, 1: 200}
    assert await task.look(subject)
    record = subject.store.record()
    assert record is not None
    assert (record.generation, record.basis_rows) == (1, 500)
    assert record.error_basis > 0
    assert record.imbalance_basis >= 1
    assert not await task.look(subject), "there is no reason for another"


async def test_growth_makes_the_next_generation(tmp_path: Path) -> None:
    rows = Rows({0: 500}, spread)
    subject = subject_of(tmp_path, rows)
    task = training(subject)
    assert await task.look(subject)
    rows.live = {0: 1_000}
    assert not await task.look(subject)
    rows.live = {0: 1_001}
    assert await task.look(subject)
    record = subject.store.record()
    assert record is not None
    assert (record.generation, record.basis_rows) == (2, 1_001)


async def test_drift_makes_the_next_generation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = Rows({0: 800}, near)
    subject = subject_of(tmp_path, rows)
    task = training(subject)
    assert await task.look(subject)
    rows.draw = spread  # the rows are as many, and lie elsewhere
    monkeypatch.setattr(task, "_rounds", FIT_EVERY_ROUNDS - 2)
    assert not await task.look(subject), "the fit is not measured in every round"
    monkeypatch.setattr(task, "_rounds", FIT_EVERY_ROUNDS - 1)
    assert await task.look(subject)
    record = subject.store.record()
    assert record is not None
    assert record.generation == 2
    assert not await task.look(subject), "the new codec fits"


async def test_lists_are_for_the_rows_of_a_shard_not_of_the_sample(tmp_path: Path) -> None:
    rows = Rows({0: 30_000, 1: 30_000}, lambda rows: spread(min(rows, 2_000)))
    subject = subject_of(tmp_path, rows)
    assert await training(subject).look(subject)
    record = subject.store.record()
    assert record is not None
    assert record.factory == "IVF128,PQ4x4fs", (
        "2048 for 30,000 rows, but the 1,750 that came can place no more than 128"
    )


@pytest.mark.parametrize("kind", [Kind.IVF_SQ8, Kind.BINARY_IVF, Kind.HNSW])
def test_every_kind_with_a_codec_can_be_stored(tmp_path: Path, kind: Kind) -> None:
    made = codec_training.train(spread(1_000).astype(np.float16), kind)
    store = CodecStore(tmp_path, "docs", index_family(kind, DIM), DIM)
    assert store.offer(replace(BLANK, sha256=hashlib.sha256(made.data).hexdigest(), factory=made.factory), made.data)
    assert made.fit.imbalance >= 1


def test_too_few_rows_for_a_kind_are_named() -> None:
    with pytest.raises(SampleError, match=r"ivf-pq with .* needs at least 256 training rows, not 88"):
        codec_training.train(spread(100).astype(np.float16), Kind.IVF_PQ)


async def test_only_the_owner_trains(tmp_path: Path) -> None:
    subject = subject_of(tmp_path, Rows({0: 900}, spread))
    assert not await training(subject, "n2", {"n1": 95.0}).look(subject)
    assert await training(subject, "n2", {"n1": 80.0}).look(subject)


async def test_a_greater_codec_that_came_meanwhile_is_kept(tmp_path: Path) -> None:
    rows = Rows({0: 900}, spread)
    subject = subject_of(tmp_path, rows)
    theirs = codec_training.train(spread(700).astype(np.float16))

    def arrive() -> None:
        sha256 = hashlib.sha256(theirs.data).hexdigest()
        record = replace(BLANK, sha256=sha256, factory=theirs.factory)
        subject.store.offer(record, theirs.data)

    rows.before_sample = arrive
    assert not await training(subject).look(subject)
    record = subject.store.record()
    assert record is not None
    assert record.generation == 7
    assert len(subject.store.records()) == 1


async def test_a_shard_that_cannot_be_sampled_is_named_and_tried_again(tmp_path: Path) -> None:
    rows = Rows({0: 900}, spread, failure="shard 1 of 'docs': n3: UNAVAILABLE")
    subject = subject_of(tmp_path, rows)
    task = training(subject)
    await task.attempt(subject)
    assert task.failures == {"docs": "shard 1 of 'docs': n3: UNAVAILABLE"}
    rows.failure = ""
    await task.attempt(subject)
    assert not task.failures
    assert subject.store.record() is not None
