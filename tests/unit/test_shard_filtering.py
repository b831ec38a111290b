"""Filters on one replica: whatever was written, updated, deleted, sealed and merged, exactly what meets the filter is
found, as a naive evaluation over a plain dictionary says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ostraka.v1 import passage_pb2
from services.quorum.gtid import Gtid
from services.quorum.rows import HeadRow, PassageRow, WriteBatch
from services.quorum.status import ReplicaStatus
from services.runtime.config import MetadataKind
from services.runtime.filter_check import condition_of
from services.shard import search
from services.shard.damage import DamagedRowError
from services.shard.engine import DATABASE_FILE, Engine, Hooks
from services.shard.filtering import CACHE_BYTES_MAX, FilterCache
from services.shard.listing import ListTask, list_documents
from services.shard.metadata_index import MetadataDamagedError, Span
from services.shard.store import Database, StoreError
from services.shard.upkeep import Upkeep
from tests.unit.shard_rows import DIM, SOURCE, FixedClock, config, hash_of, vector, version

DECLARED: Mapping[str, MetadataKind] = {"year": "integer", "lang": "text", "score": "number", "draft": "flag"}
Scalar = str | int | float | bool


def value(scalar: Scalar) -> passage_pb2.MetadataValue:
    if isinstance(scalar, bool):
        return passage_pb2.MetadataValue(flag=scalar)
    if isinstance(scalar, int):
        return passage_pb2.MetadataValue(integer=scalar)
    if isinstance(scalar, float):
        return passage_pb2.MetadataValue(number=scalar)
    return passage_pb2.MetadataValue(text=scalar)


def equals(field: str, scalar: Scalar) -> passage_pb2.Filter:
    return passage_pb2.Filter(equals=passage_pb2.Equals(field=field, value=value(scalar)))


def document(
    step: int, document_id: str, rows: Sequence[Mapping[str, Scalar]], source: str = "s", seed: int = 0
) -> WriteBatch:
    """One batch with one document, whose passages have this metadata; no rows is a tombstone."""
    at = version(step)
    passages = []
    for ordinal, metadata in enumerate(rows):
        passage = passage_pb2.Passage(document_id=document_id, ordinal=ordinal, source=source, text=f"{step}")
        for key, scalar in metadata.items():
            passage.metadata[key].CopyFrom(value(scalar))
        row = vector(seed or hash_of(f"{document_id}#{ordinal}.{step}"))
        passages.append(PassageRow(document_id, ordinal, at, row, passage.SerializeToString()))
    return WriteBatch(Gtid(SOURCE, step), at, tuple(passages), (HeadRow(document_id, len(rows), at),))


class Replica:
    """An engine with declared metadata, and what it should hold."""

    def __init__(self, directory: Path, declared: Mapping[str, MetadataKind] = DECLARED, **limits: int) -> None:
        self.directory, self.declared, self.limits = directory, declared, limits
        self.engine = self.open()
        self.step = 0
        self.expected: dict[str, list[dict[str, Scalar]]] = {}

    def open(self) -> Engine:
        return Engine(
            self.directory, "r1", 1, DIM, config(**self.limits), FixedClock(), Hooks(fatal=print), self.declared
        )

    def restart(self, declared: Mapping[str, MetadataKind] | None = None) -> None:
        self.engine.close()
        self.declared = declared or self.declared
        self.engine = self.open()

    def put(self, document_id: str, rows: Sequence[Mapping[str, Scalar]], source: str = "s") -> None:
        self.step += 1
        future = self.engine.write(document(self.step, document_id, rows, source), 1)
        assert future is not None
        assert future.result(10).status is ReplicaStatus.OK
        self.expected.pop(document_id, None)
        if rows:
            self.expected[document_id] = [{**row, "source": source, "document_id": document_id} for row in rows]

    def found(self, wanted: passage_pb2.Filter, k: int = 1_000, *, exact: bool = True) -> tuple[list[str], int]:
        """(passages found for some query, rows matching)"""
        task = search.SearchTask(QUERY, k, exact, False, condition_of(wanted, self.declared))
        matching = search.narrowed(self.engine.view, self.engine.readers, task, self.engine.filters)
        (result,) = search.run(matching, self.engine.readers, task, self.engine.filters)
        return [f"{hit.document_id}#{hit.ordinal}" for hit in result.hits], matching.rows_live

    def naive(self, wanted: passage_pb2.Filter) -> set[str]:
        return {
            f"{document_id}#{ordinal}"
            for document_id, rows in self.expected.items()
            for ordinal, row in enumerate(rows)
            if holds(wanted, row)
        }

    def listed(self, wanted: passage_pb2.Filter | None, limit: int) -> list[str]:
        """All documents, page by page."""
        condition = None if wanted is None else condition_of(wanted, self.declared)
        found: list[str] = []
        while True:
            task = ListTask(condition, found[-1] if found else "", limit, False, False)
            page = list_documents(lambda: self.engine.view, self.engine.readers, self.engine.filters, task)
            assert len(page.documents) <= limit
            assert page.applied == self.engine.view.applied
            found += [entry.head.document_id for entry in page.documents]
            if not page.more:
                return found


QUERY = np.frombuffer(vector(7), dtype="<f2").astype(np.float32)[None, :]


def holds(wanted: passage_pb2.Filter, row: Mapping[str, Any]) -> bool:
    """The contract, said once more in the plainest way, on the message itself."""
    kind = wanted.WhichOneof("kind")
    if kind == "all_of":
        return all(holds(part, row) for part in wanted.all_of.filters)
    if kind == "any_of":
        return any(holds(part, row) for part in wanted.any_of.filters)
    if kind == "negation":
        return not holds(wanted.negation, row)
    test = getattr(wanted, kind or "")
    if test.field not in row:
        return False
    own = row[test.field].encode() if isinstance(row[test.field], str) else row[test.field]

    def plain(message: passage_pb2.MetadataValue) -> Any:
        scalar = getattr(message, message.WhichOneof("kind") or "")
        return scalar.encode() if isinstance(scalar, str) else scalar

    if kind == "equals":
        return bool(own == plain(test.value))
    if kind == "one_of":
        return own in [plain(entry) for entry in test.values]
    return (
        (not test.HasField("at_least") or own >= plain(test.at_least))
        and (not test.HasField("above") or own > plain(test.above))
        and (not test.HasField("at_most") or own <= plain(test.at_most))
        and (not test.HasField("below") or own < plain(test.below))
    )


LANGS = ["", "de", "en", "en-GB", "é", "\U0001f600", "ﬀ", "a\0b"]
SCALARS: dict[str, st.SearchStrategy[Any]] = {
    "year": st.sampled_from([-(2**63), -1, 0, 1, 2019, 2020, 2021, 2**63 - 1]),
    "lang": st.sampled_from(LANGS),
    "score": st.sampled_from([-1.5, 0.0, 0.1, 0.5, 1, 2, 1e300]),
    "draft": st.booleans(),
    "document_id": st.sampled_from([f"d{n}" for n in range(6)]),
    "source": st.sampled_from(["s", "t", "u"]),
}
ROWS = st.fixed_dictionaries({}, optional={name: SCALARS[name] for name in DECLARED})


@st.composite
def leaves(draw: st.DrawFn) -> passage_pb2.Filter:
    field = draw(st.sampled_from(sorted(SCALARS)))
    shape = draw(st.sampled_from(["equals", "one_of", "range"]))
    if shape == "equals" or (shape == "range" and field == "draft"):
        return equals(field, draw(SCALARS[field]))
    if shape == "one_of":
        chosen = draw(st.lists(SCALARS[field], min_size=1, max_size=4))
        return passage_pb2.Filter(one_of=passage_pb2.OneOf(field=field, values=map(value, chosen)))
    low, high = sorted([draw(SCALARS[field]), draw(SCALARS[field])])
    made = passage_pb2.Range(field=field)
    if low == high:
        made.at_least.CopyFrom(value(low))
    else:
        lower, upper = draw(st.sampled_from([("at_least", "at_most"), ("above", ""), ("", "below"), ("at_least", "")]))
        if lower:
            getattr(made, lower).CopyFrom(value(low))
        if upper:
            getattr(made, upper).CopyFrom(value(high))
    if field == "year" and made.HasField("above") and made.above.integer == 2**63 - 1:
        return equals(field, low)
    return passage_pb2.Filter(range=made)


FILTERS = st.recursive(
    leaves(),
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map(
            lambda parts: passage_pb2.Filter(all_of=passage_pb2.FilterList(filters=parts))
        ),
        st.lists(inner, min_size=1, max_size=3).map(
            lambda parts: passage_pb2.Filter(any_of=passage_pb2.FilterList(filters=parts))
        ),
        inner.map(lambda part: passage_pb2.Filter(negation=part)),
    ),
    max_leaves=6,
)
WRITES = st.tuples(
    st.sampled_from([f"d{n}" for n in range(6)]), st.lists(ROWS, max_size=3), st.sampled_from(["s", "t", "u"])
)


@pytest.fixture
def replica(tmp_path: Path) -> Iterator[Replica]:
    made = Replica(tmp_path)
    yield made
    made.engine.close()


@given(
    steps=st.lists(st.one_of(WRITES, st.just("restart")), min_size=1, max_size=12),
    asked=st.lists(FILTERS, min_size=1, max_size=3),
)
@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_random_filters_over_random_writes(
    tmp_path_factory: pytest.TempPathFactory, steps: list[Any], asked: list[passage_pb2.Filter]
) -> None:
    replica = Replica(tmp_path_factory.mktemp("replica"))
    try:
        for step in steps:
            if step == "restart":
                replica.restart()
            else:
                replica.put(*step)
            for wanted in asked:  # asked again after every write: what was remembered must not show
                found, matching = replica.found(wanted)
                assert set(found) == replica.naive(wanted)
                assert matching == len(found)
        for wanted in asked:
            documents = sorted({name.rpartition("#")[0] for name in replica.naive(wanted)})
            assert replica.listed(wanted, 2) == documents
        assert replica.listed(None, 4) == sorted(replica.expected)
    finally:
        replica.engine.close()


def sealed(directory: Path, documents: int = 400) -> Replica:
    """Two rows per document: `year` counts documents, `lang` of every hundredth is rare."""
    replica = Replica(directory)
    for n in range(documents):
        lang = "rare" if n % 100 == 7 else "en"
        replica.put(f"d{n:04d}", [{"year": n, "lang": lang}, {"year": n, "lang": lang, "draft": n % 2 == 0}])
    Upkeep(replica.engine).step(1)
    assert replica.engine.view.parts, "something was sealed"
    return replica


@pytest.mark.parametrize("seed", [1, 2])
def test_filters_hold_through_seals_and_merges(tmp_path: Path, seed: int) -> None:
    print(f"seed {seed}")
    rng = np.random.default_rng(seed)
    replica = Replica(tmp_path, delta_rows_flush=40, train_rows_min=400)

    def metadata() -> dict[str, Scalar]:
        row: dict[str, Scalar] = {"year": int(rng.integers(0, 50)), "lang": LANGS[rng.integers(len(LANGS))]}
        return {**row, "draft": bool(rng.integers(2))} if rng.random() < 0.5 else row

    def asked() -> passage_pb2.Filter:
        low, width = int(rng.integers(0, 50)), int(rng.choice([0, 1, 10, 50]))
        parts = [between(low, low + width), equals("lang", LANGS[rng.integers(len(LANGS))]), equals("draft", True)]
        chosen = [parts[n] for n in rng.choice(3, int(rng.integers(1, 4)), replace=False)]
        if rng.random() < 0.5:
            chosen[0] = passage_pb2.Filter(negation=chosen[0])
        joined = passage_pb2.FilterList(filters=chosen)
        return passage_pb2.Filter(**{str(rng.choice(["all_of", "any_of"])): joined})  # type: ignore[arg-type]

    try:
        upkeep = Upkeep(replica.engine)
        kept = [asked() for _ in range(4)]
        shapes = set()
        for n in range(420):
            target = int(rng.integers(n)) if n and rng.random() < 0.2 else n
            replica.put(f"d{target}", [metadata() for _ in range(int(rng.integers(0, 4)))])
            if n % 10 == 9:
                upkeep.step(1)
                shapes.add(tuple(part.segment.name for part in replica.engine.view.parts))
            if n % 30 == 29:
                for wanted in (*kept, asked()):
                    expected = replica.naive(wanted)
                    for exact in (True, False):
                        found, matching = replica.found(wanted, 20, exact=exact)
                        assert matching == len(expected)
                        assert len(found) == len(set(found)) == min(20, len(expected))
                        assert set(found) <= expected
        assert len(shapes) >= 4, "segments were sealed and merged meanwhile"
    finally:
        replica.engine.close()


def between(low: int, high: int) -> passage_pb2.Filter:
    return passage_pb2.Filter(range=passage_pb2.Range(field="year", at_least=value(low), at_most=value(high)))


@pytest.mark.parametrize("exact", [True, False])
def test_k_hits_whenever_k_rows_match_at_any_selectivity(tmp_path: Path, exact: bool) -> None:
    replica = sealed(tmp_path)
    try:
        for n in range(0, 400, 3):
            replica.put(f"d{n:04d}", [])
        for n in range(400, 430):
            replica.put(f"d{n:04d}", [{"year": n, "lang": "en"}])
        for low, high in [(0, 1), (5, 5), (0, 12), (10, 60), (0, 398), (100, 1_000), (399, 402), (500, 600)]:
            wanted = between(low, high)
            expected = replica.naive(wanted)
            found, matching = replica.found(wanted, 10, exact=exact)
            assert matching == len(expected)
            assert len(found) == min(10, len(expected))
            assert set(found) <= expected
        found, _ = replica.found(equals("lang", "rare"), 10, exact=exact)
        assert set(found) <= replica.naive(equals("lang", "rare"))
        assert len(found) == min(10, len(replica.naive(equals("lang", "rare"))))
    finally:
        replica.engine.close()


def test_a_segments_bitmap_is_computed_once_and_survives_deletions_and_merges(tmp_path: Path) -> None:
    replica = sealed(tmp_path)
    try:
        wanted = equals("draft", True)
        assert set(replica.found(wanted)[0]) == replica.naive(wanted)
        replica.put("d0002", [])
        replica.put("d0004", [{"draft": True}, {"draft": False}, {}])
        database = Database(tmp_path / DATABASE_FILE, writable=True)
        database.rows("DELETE FROM metadata WHERE field = 1")  # `draft`: sealed rows need the index no more
        database.close()
        assert set(replica.found(wanted)[0]) == replica.naive(wanted)
        for n in range(500, 900):
            replica.put(f"d{n:04d}", [{"draft": False}, {"year": n}])
        Upkeep(replica.engine).step(1)
        both = passage_pb2.Filter(any_of=passage_pb2.FilterList(filters=[between(0, 20), between(880, 900)]))
        assert set(replica.found(both)[0]) == replica.naive(both)
        assert replica.engine.filters.cache.bytes > 0
    finally:
        replica.engine.close()


def test_an_index_that_names_too_much_is_found_out_and_mended(replica: Replica) -> None:
    for n in range(3):
        replica.put(f"d{n}", [{"year": n}])
    for n in range(300):
        replica.put(f"filler{n}", [{}])  # so that the index is asked, not the rows themselves
    database = Database(replica.directory / DATABASE_FILE, writable=True)
    database.rows("UPDATE metadata SET value = 2 WHERE value = 1 AND field = 4")
    database.close()
    replica.put("d3", [{"year": 2}])
    with pytest.raises(MetadataDamagedError) as caught:
        replica.found(equals("year", 2))
    replica.engine.mend_metadata(caught.value.rids).result(10)
    assert set(replica.found(equals("year", 2))[0]) == {"d2#0", "d3#0"}
    assert set(replica.found(equals("year", 1))[0]) == {"d1#0"}


def test_an_entry_that_names_no_passage_is_found_out_and_removed(replica: Replica) -> None:
    for n in range(300):
        replica.put(f"d{n}", [{"year": n % 2}])
    index, condition = replica.engine.filters.index, condition_of(equals("year", 1), DECLARED)
    database = Database(replica.directory / DATABASE_FILE, writable=True)
    database.rows("UPDATE metadata SET rid = 8.5 WHERE rid = 8 AND field = 4")
    database.close()
    with replica.engine.readers.lend() as reader, pytest.raises(MetadataDamagedError):
        index.rids(reader.database, condition, Span(-(2**62), 2**62))  # type: ignore[arg-type] # a single test
    replica.engine.mend_metadata(()).result(10)
    with replica.engine.readers.lend() as reader:
        rows = reader.database.rows("SELECT rid, document, payload FROM passages")
        wrong = index.missing(reader.database, rows)
    replica.engine.mend_metadata(wrong).result(10)
    found, _ = replica.found(equals("year", 1))
    assert set(found) == replica.naive(equals("year", 1))


def test_an_interrupted_build_is_begun_anew(replica: Replica) -> None:
    for n in range(5):
        replica.put(f"d{n}", [{"year": n}])
    database = Database(replica.directory / DATABASE_FILE, writable=True)
    database.rows(
        "CREATE TRIGGER stop BEFORE INSERT ON meta WHEN new.k = 'metadata_schema'"
        " BEGIN SELECT RAISE(ABORT, 'crash'); END"
    )
    with pytest.raises(StoreError, match="crash"):
        replica.restart({"lang": "text"})
    database.rows("DROP TRIGGER stop")
    database.close()
    replica.restart(DECLARED)
    assert set(replica.found(equals("year", 3))[0]) == {"d3#0"}


def test_an_index_that_names_too_little_is_told_to_the_scrub(replica: Replica) -> None:
    for n in range(5):
        replica.put(f"d{n}", [{"year": n}, {}])
    index = replica.engine.filters.index
    with replica.engine.readers.lend() as reader:
        rows = reader.database.rows("SELECT rid, document, payload FROM passages")
        assert index.missing(reader.database, rows) == []
    database = Database(replica.directory / DATABASE_FILE, writable=True)
    database.rows("DELETE FROM metadata WHERE value = 3")
    database.close()
    with replica.engine.readers.lend() as reader:
        wrong = index.missing(reader.database, rows)
        assert [row[1] for row in rows if row[0] in wrong] == ["d3"]
    replica.engine.mend_metadata(wrong).result(10)
    with replica.engine.readers.lend() as reader:
        assert index.missing(reader.database, rows) == []


def test_another_declaration_builds_the_index_anew(replica: Replica) -> None:
    for n in range(10):
        replica.put(f"d{n}", [{"year": n % 3, "extra": "x" if n % 2 else "y"}])
    replica.restart({"extra": "text", "year": "number"})
    assert set(replica.found(equals("extra", "x"))[0]) == replica.naive(equals("extra", "x"))
    half = passage_pb2.Filter(range=passage_pb2.Range(field="year", above=value(0.5)))
    assert set(replica.found(half)[0]) == replica.naive(half), "an integer is a number"
    replica.restart({"year": "text"})
    assert replica.found(equals("year", "1")) == ([], 0), "what is of another type is as if it were not there"


def test_what_is_purged_leaves_the_index(replica: Replica) -> None:
    for step in range(4):
        replica.put("d", [{"year": step}])
    with replica.engine.readers.lend() as reader:
        before = reader.database.rows("SELECT count(*) FROM metadata")
    clock: Any = replica.engine.clock
    clock.now_ms += 1_000_000
    assert replica.engine.purge().result(10) == 3
    with replica.engine.readers.lend() as reader:
        after = reader.database.rows("SELECT count(*) FROM metadata")
    assert (before, after) == ([(8,)], [(2,)])


def test_the_cache_keeps_within_its_bytes_and_forgets_what_is_old(replica: Replica) -> None:
    replica.engine.filters.cache = cache = FilterCache(6_000)
    for n in range(20):
        replica.put(f"d{n}", [{"year": n}])
    for n in range(20):
        replica.found(equals("year", n))
        assert 0 < cache.bytes <= 6_000
    generation = cache.generation
    cache.clear()
    assert (cache.bytes, cache.generation) == (0, generation + 1)
    assert CACHE_BYTES_MAX >= 1 << 20


def test_few_new_rows_are_read_and_not_looked_up(replica: Replica) -> None:
    replica.put("a", [{"year": 1}])
    assert replica.found(equals("year", 1))[1] == 1
    replica.put("b", [{"year": 1}])
    database = Database(replica.directory / DATABASE_FILE, writable=True)
    database.rows("DELETE FROM metadata")
    database.close()
    assert set(replica.found(equals("year", 1))[0]) == {"a#0", "b#0"}


def test_pages_are_cut_by_bytes_and_walked_when_many_match(replica: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
    for n in range(40):
        replica.put(f"d{n:02d}", [{"year": n % 2}, {"year": n % 3}])
    monkeypatch.setattr("services.shard.listing.SORTED_ROWS_MAX", 3)
    monkeypatch.setattr("services.shard.listing.PAGE_BYTES_MAX", 200)
    task = ListTask(None, "", 1_000, True, True)
    page = list_documents(lambda: replica.engine.view, replica.engine.readers, replica.engine.filters, task)
    assert page.more
    assert 1 <= len(page.documents) < 5
    first = page.documents[0]
    assert (first.head.document_id, len(first.passages), len(first.passages[0].vector_f16)) == ("d00", 2, 2 * DIM)
    assert replica.listed(None, 1_000) == sorted(replica.expected)
    wanted = equals("year", 1)
    names = sorted({name.rpartition("#")[0] for name in replica.naive(wanted)})
    assert replica.listed(wanted, 1_000) == names
    assert replica.listed(wanted, 1) == names


def test_a_document_that_turns_into_a_tombstone_by_damage_is_reported(replica: Replica) -> None:
    replica.put("a", [{"year": 1}])
    replica.put("b", [{"year": 1}])
    replica.put("c", [])
    assert replica.listed(None, 10) == ["a", "b"]
    database = Database(replica.directory / DATABASE_FILE, writable=True)
    database.rows("UPDATE heads SET n = 0 WHERE document = 'b'")
    database.close()
    with pytest.raises(DamagedRowError, match="b"):
        replica.listed(None, 10)


def test_a_damaged_row_on_a_page_is_not_listed_but_reported(replica: Replica) -> None:
    replica.put("a", [{"year": 1}])
    database = Database(replica.directory / DATABASE_FILE, writable=True)
    database.rows("UPDATE passages SET payload = CAST(payload || x'00' AS BLOB)")
    database.close()
    with pytest.raises(DamagedRowError, match="a#0"):
        replica.listed(None, 10)
