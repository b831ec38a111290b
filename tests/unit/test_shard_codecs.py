"""The store of codecs: only what is sound gets in, only what is sound comes out, and the greatest wins."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.shard import codecs, faiss_index, files
from services.shard.codec_training import train
from services.shard.codecs import KEPT_MAX, CodecFacts, CodecRecord, CodecRefusedError, CodecStore, family

DIM = 16
FACTORY = "IVF4,PQ4x4fs"
KIND = family(FACTORY)


@cache
def trained(seed: int = 1, dim: int = DIM) -> tuple[CodecRecord, bytes]:
    """A real codec of few rows."""
    rows = np.random.default_rng(seed).standard_normal((400, dim)).astype(np.float32)
    index = faiss_index.train(rows, 1)
    data = index.codec()
    return CodecRecord(1, hashlib.sha256(data).hexdigest(), index.factory, 400, 400), data


def make(generation: int, content: int) -> tuple[CodecRecord, bytes]:
    """A codec in name only, for stores that do not look inside."""
    data = b"codec %d" % content
    return CodecRecord(generation, hashlib.sha256(data).hexdigest(), FACTORY, 400, 400), data


def credulous(data: bytes) -> CodecFacts:
    return CodecFacts(FACTORY, DIM, 0)


def opened(directory: Path) -> CodecStore:
    record, _ = trained()
    return CodecStore(directory, "docs", family(record.factory), DIM)


def listing(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


def test_what_was_taken_is_there_after_a_restart(tmp_path: Path) -> None:
    record, data = trained()
    store = opened(tmp_path)
    assert (store.current(), store.record()) == (None, None)
    assert store.offer(record, data)
    assert not store.offer(record, data)
    again = opened(tmp_path).current()
    assert again is not None
    assert (again.record, again.data) == (record, data)
    assert opened(tmp_path).by_id(record.sha256[:8]) == again
    assert opened(tmp_path).by_id("00000000") is None


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"generation": 0}, "generation must be at least 1, not 0"),
        ({"sha256": "0" * 64}, "the bytes have sha256"),
        ({"factory": "IVF9,PQ4x4fs"}, "the record says IVF9,PQ4x4fs"),
    ],
)
def test_a_record_that_says_something_else_is_refused(tmp_path: Path, change: dict[str, str], reason: str) -> None:
    record, data = trained()
    store = opened(tmp_path)
    with pytest.raises(CodecRefusedError, match=reason):
        store.offer(replace(record, **change), data)  # type: ignore[arg-type]
    assert store.current() is None
    assert not listing(tmp_path)


@pytest.mark.parametrize("cut", [0, 1, 40, 1_000, -1])
def test_bytes_that_faiss_cannot_read_are_refused(tmp_path: Path, cut: int) -> None:
    _, data = trained()
    part = data[:cut] if cut else b"\0" * 512
    record = replace(trained()[0], sha256=hashlib.sha256(part).hexdigest())
    with pytest.raises(CodecRefusedError, match="FAISS cannot read it"):
        opened(tmp_path).offer(record, part)
    assert not listing(tmp_path)


def test_a_codec_of_other_dimensions_or_another_kind_is_refused(tmp_path: Path) -> None:
    record, data = trained(dim=32)
    with pytest.raises(CodecRefusedError, match="32 dimensions, the collection has 16"):
        opened(tmp_path).offer(record, data)
    record, data = trained()
    other = CodecStore(tmp_path, "docs", "IVF*,SQ*", DIM)
    with pytest.raises(CodecRefusedError, match=r"index kind IVF\*,PQ\*x\*fs, the collection has IVF\*,SQ\*"):
        other.offer(record, data)


def test_a_damaged_file_is_never_served_and_can_be_replaced(tmp_path: Path) -> None:
    record, data = trained()
    older = replace(record, generation=1)
    newer, newer_data = replace(trained(2)[0], generation=2), trained(2)[1]
    for each, content in ((older, data), (newer, newer_data)):
        opened(tmp_path).offer(each, content)
    path = tmp_path / f"{newer.sha256}.faiss"
    spoiled = bytearray(newer_data)
    spoiled[len(spoiled) // 3] ^= 4
    path.write_bytes(spoiled)
    store = opened(tmp_path)
    served = store.current()
    assert served is not None
    assert served.record == older
    assert store.by_id(newer.short) is None
    assert store.record() == older, "peers are asked for the newer one again"
    assert store.offer(newer, newer_data)
    assert opened(tmp_path).current() == codecs.Codec(newer, newer_data)


@pytest.mark.parametrize("name", ["record.json", "codec"])
def test_a_crash_between_the_two_writes_leaves_a_sound_store(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    record, data = trained()
    opened(tmp_path).offer(record, data)
    newer, newer_data = replace(trained(2)[0], generation=2), trained(2)[1]
    real = files.replace_file

    def failing(path: Path, content: bytes) -> None:
        if path.name == name or (name == "codec" and path.suffix == ".faiss"):
            raise OSError("the disk is full")
        real(path, content)

    monkeypatch.setattr(files, "replace_file", failing)
    store = opened(tmp_path)
    with pytest.raises(OSError, match="full"):
        store.offer(newer, newer_data)
    assert store.record() == record
    assert opened(tmp_path).record() == record
    assert {path.name for path in tmp_path.iterdir()} == {"record.json", f"{record.sha256}.faiss"}


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    offers=st.lists(st.tuples(st.integers(1, 4), st.integers(0, 5)), min_size=1, max_size=10),
    orders=st.lists(st.randoms(use_true_random=False), min_size=2, max_size=3),
    restarts=st.sets(st.integers(0, 9)),
)
def test_stores_that_get_the_same_offers_in_any_order_agree(
    tmp_path_factory: pytest.TempPathFactory,
    offers: list[tuple[int, int]],
    orders: list[object],
    restarts: set[int],
) -> None:
    distinct = {make(generation, content)[0].sha256: make(generation, content) for generation, content in offers}
    currents = []
    for order in orders:
        directory = tmp_path_factory.mktemp("codecs")
        shuffled = list(distinct.values())
        order.shuffle(shuffled)  # type: ignore[attr-defined]
        store = CodecStore(directory, "docs", KIND, DIM, inspect=credulous)
        for number, (record, data) in enumerate(shuffled):
            store.offer(record, data)
            if number in restarts:
                store = CodecStore(directory, "docs", KIND, DIM, inspect=credulous)
            current = store.current()
            assert current is not None
            assert current.record.rank == max(entry.rank for entry, _ in shuffled[: number + 1])
        currents.append(store.current())
    assert len({current.record for current in currents if current}) == 1


def test_old_codecs_go_unless_a_segment_names_them(tmp_path: Path) -> None:
    store = CodecStore(tmp_path, "docs", KIND, DIM, inspect=credulous)
    made = [make(generation, generation) for generation in range(1, KEPT_MAX + 4)]
    for record, data in made:
        store.offer(record, data)
    oldest = made[0][0]
    store.retain({oldest.short})
    kept = [record for record, _ in (made[0], *made[-KEPT_MAX:])]
    assert list(store.records()) == kept
    assert {path.name for path in tmp_path.glob("*.faiss")} == {f"{record.sha256}.faiss" for record in kept}
    assert list(CodecStore(tmp_path, "docs", KIND, DIM, inspect=credulous).records()) == kept


def test_the_same_bytes_may_come_back_as_a_later_generation(tmp_path: Path) -> None:
    record, data = trained()
    store = opened(tmp_path)
    store.offer(record, data)
    later = replace(record, generation=2, basis_rows=900)
    assert store.offer(later, data)
    assert not store.offer(record, data)
    assert opened(tmp_path).records() == (later,)


def test_codecs_of_another_configuration_are_left_behind(tmp_path: Path) -> None:
    record, data = trained()
    opened(tmp_path).offer(record, data)
    assert CodecStore(tmp_path, "docs", family(record.factory), 32).current() is None


def test_equal_samples_make_equal_codecs() -> None:
    sample = np.random.default_rng(3).standard_normal((1_000, DIM)).astype(np.float16)
    first, second = train(sample), train(sample)
    assert first == second
    assert first.rows == 875
    assert 0 < first.fit.error < 16
    assert first.fit.imbalance >= 1
