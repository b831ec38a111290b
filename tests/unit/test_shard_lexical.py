"""Words in one replica on disk: acknowledged means found, and the same scores wherever a row lies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from ostraka.v1 import passage_pb2, shard_pb2
from services.quorum.gtid import Gtid, GtidSet
from services.quorum.rows import HeadRow, PassageRow, WriteBatch
from services.runtime.conditions import In
from services.runtime.config import LexicalConfig
from services.shard import lexical_search, search, statistics
from services.shard.engine import Engine
from services.shard.lexical_ahead import TermsAhead
from services.shard.lexical_queries import LexicalQueries
from services.shard.lexical_search import lexical_of
from services.shard.lexical_view import lexical_parts
from services.shard.statistics_exchange import StatisticsExchange
from services.shard.upkeep import Upkeep
from tests.unit.shard_rows import DIM, SOURCE, FixedClock, config, hash_of, vector, version

EPOCH = 1
WORDS = ("mesh", "shard", "quorum", "replica", "vector", "segment", "posting", "bitmap", "codec", "delta")


def worded(step: int, documents: Mapping[str, Sequence[str]]) -> WriteBatch:
    """Whole documents by the texts of their passages; none is a tombstone."""
    at = version(step)
    passages = tuple(
        PassageRow(
            name,
            ordinal,
            at,
            vector(hash_of(f"{name}#{ordinal}")),
            passage_pb2.Passage(document_id=name, ordinal=ordinal, text=text).SerializeToString(),
        )
        for name, texts in documents.items()
        for ordinal, text in enumerate(texts)
    )
    heads = tuple(HeadRow(name, len(texts), at) for name, texts in documents.items())
    return WriteBatch(Gtid(SOURCE, step), at, passages, heads, GtidSet.EMPTY)


class Words:
    """An engine with a collection's settings, asked by words."""

    def __init__(self, directory: Path, language: str = "english") -> None:
        self.directory = directory
        self.clock = FixedClock()
        self.step = 0
        self.open(language)

    def open(self, language: str = "english") -> None:
        self.lexical = lexical_of(LexicalConfig(language=language))  # type: ignore[arg-type] # one of two
        self.engine = Engine(self.directory, "r1", EPOCH, DIM, config(), self.clock, lexical=self.lexical)

    def write(self, documents: Mapping[str, Sequence[str]]) -> None:
        self.step += 1
        self.store(worded(self.step, documents))

    def store(self, entry: WriteBatch) -> None:
        self.engine.analyse(entry.passages)
        written = self.engine.write(entry, EPOCH)
        assert written is not None
        assert written.result(10).status.name == "OK"

    def results(
        self, text: str, k: int = 10, mode: passage_pb2.SearchMode.ValueType = search.LEXICAL
    ) -> shard_pb2.ShardQueryResult:
        view = self.engine.view
        words = LexicalQueries([text], "docs", self.lexical, _nothing_known(self.clock))
        scorers, _ = words.scorers(0, lexical_parts(view))
        queries = np.frombuffer(vector(1), dtype="<f2").astype(np.float32)[None, :]
        task = search.SearchTask(queries, k, exact=True, include_payload=True, mode=mode, words=words)
        (result,) = search.run(view, self.engine.readers, task, self.engine.filters, scorers)
        return result

    def found(self, text: str, k: int = 10) -> list[tuple[str, float]]:
        hits = self.results(text, k).lexical_hits
        return [(f"{hit.document_id}#{hit.ordinal}", hit.lexical_score) for hit in hits]

    def names(self, text: str, k: int = 10) -> list[str]:
        return [name for name, _ in self.found(text, k)]

    def seal(self) -> None:
        Upkeep(self.engine).step(1)


def _nothing_known(clock: FixedClock) -> StatisticsExchange:
    return StatisticsExchange({}, None, clock)  # type: ignore[arg-type] # without replicas no topology is looked at


@pytest.fixture
def words(tmp_path: Path) -> Iterator[Words]:
    made = Words(tmp_path)
    yield made
    made.engine.close()


def texts(seed: int, count: int) -> list[str]:
    generator = np.random.default_rng(seed)
    return [" ".join(generator.choice(WORDS, generator.integers(0, 14))) for _ in range(count)]


def fill(words: Words, seed: int, documents: int, first: int = 0) -> None:
    """Two passages per document."""
    for start in range(first, first + documents, 40):
        numbers = range(start, min(start + 40, first + documents))
        words.write({f"d{n}": texts(seed + n, 2) for n in numbers})


def test_what_was_acknowledged_is_found_by_the_next_search(words: Words) -> None:
    words.write({"a": ["A quorum of replicas", "nothing"], "b": ["reading_files quickly"]})
    assert words.names("quorums") == ["a#0"]
    assert words.names("reading files") == ["b#0"]
    words.write({"a": ["only a mesh now"]})
    assert words.names("quorum") == []
    assert words.names("mesh") == ["a#0"]
    words.write({"a": []})
    assert words.names("mesh") == []


def test_scores_are_the_same_in_the_delta_sealed_merged_and_after_a_restart(words: Words) -> None:
    fill(words, seed=3, documents=400)
    words.write({f"d{n}": texts(9_000 + n, 1) for n in range(0, 60, 3)})
    asked = ["mesh", "quorum replica codec", "delta delta bitmap", "absent", "posting segment mesh shard vector"]
    before = [words.found(text, 30) for text in asked]
    assert len(before[0]) == 30
    words.seal()
    assert len(words.engine.view.parts) == 1
    assert words.engine.view.delta.length == 0
    assert [words.found(text, 30) for text in asked] == before
    words.engine.close()
    words.open()
    assert [words.found(text, 30) for text in asked] == before

    fill(words, seed=50, documents=150, first=1_000)
    words.write({f"d{n}": [] for n in range(100, 200)})
    grown = [words.found(text, 30) for text in asked]
    assert grown != before
    for _ in range(3):
        words.seal()
        assert [words.found(text, 30) for text in asked] == grown
    words.engine.close()
    words.open()
    assert [words.found(text, 30) for text in asked] == grown


def test_another_analyzer_indexes_all_words_anew(words: Words) -> None:
    fill(words, seed=5, documents=400)
    words.write({"x": ["running quickly"]})
    words.seal()
    assert words.names("runs") == ["x#0"]
    before = words.found("mesh codec", 20)
    words.engine.close()
    words.open("none")
    assert not words.engine.view.parts
    assert words.names("runs") == []
    assert words.names("running") == ["x#0"]
    words.seal()
    assert words.engine.view.parts[0].segment.lexical.analyzer == "none-1"
    assert words.names("running") == ["x#0"]
    words.engine.close()
    words.open()
    assert words.found("mesh codec", 20) == before


def test_ties_go_by_document_and_ordinal_and_only_k_are_read(words: Words) -> None:
    words.write({f"t{n:02}": ["same words"] * 2 for n in range(30)})
    expected = [f"t{n:02}#{ordinal}" for n in range(30) for ordinal in range(2)]
    assert words.names("words", 7) == expected[:7]
    assert words.names("words", 60) == expected
    assert words.names("words", 100) == expected


def test_hybrid_sends_a_payload_once_and_two_stage_scores_every_dense_hit(words: Words) -> None:
    words.write({f"h{n}": [text] for n, text in enumerate(texts(8, 30))})
    result = words.results("mesh codec", 10, search.HYBRID)
    near = {hit.document_id for hit in result.hits}
    assert all(hit.payload and not hit.lexical_score for hit in result.hits)
    assert near & {hit.document_id for hit in result.lexical_hits}, "some are in both"
    assert all(bool(hit.payload) == (hit.document_id not in near) for hit in result.lexical_hits)
    both = words.results("mesh codec", 30, search.TWO_STAGE)
    assert not both.lexical_hits
    scores = {f"{hit.document_id}#0": hit.lexical_score for hit in both.hits if hit.lexical_score}
    assert scores == dict(words.found("mesh codec", 30))


def test_queries_without_terms_find_nothing_and_are_no_error(words: Words) -> None:
    words.write({"a": ["the mesh"]})
    for text in ("the", "!?", " ", "\x00", "unheard"):
        assert words.names(text) == []


def test_a_giant_passage_and_a_giant_query(words: Words) -> None:
    words.write({"a": ["mesh " * 12_000], "b": ["mesh quorum"]})
    assert set(words.names("mesh " * 12_000)) == {"a#0", "b#0"}


def test_an_older_view_keeps_its_words(words: Words) -> None:
    words.write({"a": ["mesh one"], "b": ["mesh two"]})
    older = words.engine.view
    for step in range(300):
        words.write({"a": [f"quorum {step}"], f"c{step}": ["mesh again"]})
    terms = words.lexical.analyzer.query("mesh")
    parts = lexical_parts(older)
    scorer = lexical_search.scorer(terms, statistics.corpus(parts, terms.terms), words.lexical)
    assert len(lexical_search.search(parts, scorer, 10).rids) == 2
    assert len(words.names("mesh", 400)) == 301


def test_a_filter_hides_rows_and_leaves_scores_alone(words: Words) -> None:
    fill(words, seed=11, documents=380)
    words.seal()
    fill(words, seed=12, documents=30, first=500)
    every = dict(words.found("mesh codec", 2_000))
    wanted = {f"d{n}" for n in (*range(0, 380, 7), 505, 511)}
    condition = In("document_id", tuple(sorted(wanted)))
    view = words.engine.view
    asked = LexicalQueries(["mesh codec"], "docs", words.lexical, _nothing_known(words.clock))
    scorers, _ = asked.scorers(0, lexical_parts(view))
    task = search.SearchTask(np.empty((1, 0), np.float32), 2_000, False, False, condition, search.LEXICAL, asked)
    narrow = search.narrowed(view, words.engine.readers, task, words.engine.filters)
    (result,) = search.run(narrow, words.engine.readers, task, words.engine.filters, scorers)
    found = {f"{hit.document_id}#{hit.ordinal}": hit.lexical_score for hit in result.lexical_hits}
    assert found == {name: score for name, score in every.items() if name.split("#")[0] in wanted}


def test_terms_found_ahead_are_taken_once_and_their_memory_is_bounded() -> None:
    payloads = [passage_pb2.Passage(text=f"mesh number{n}").SerializeToString() for n in range(50)]
    ahead = TermsAhead(lexical_of(LexicalConfig()).analyzer, bytes_max=400)
    ahead.prepare(payloads)
    assert 0 < ahead.bytes <= 400
    taken = [ahead.take(payload) for payload in payloads]
    assert [row.length for row in taken] == [2] * 50
    assert ahead.bytes == 0
    ahead.prepare([payloads[0], payloads[0]])
    ahead.take(payloads[0])
    assert ahead.bytes == 0
    ahead.prepare([passage_pb2.Passage(text="mesh " * 1_000).SerializeToString()])
    assert ahead.bytes == 0, "what is larger than the bound is analysed at the commit"


def test_replicas_of_equal_content_answer_equally_whatever_their_segments(words: Words, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = Words(tmp_path / "other")
    try:
        batches = [worded(n, {f"d{n}-{m}": texts(100 * n + m, 2) for m in range(30)}) for n in range(1, 15)]
        late = [worded(n, {f"d{n - 20}-{m}": texts(7 * n + m, 1) for m in range(0, 30, 4)}) for n in range(21, 30)]
        for entry in (*batches, *late):
            words.store(entry)
        words.seal()
        for entry in (*reversed(late), *batches[7:], *batches[:7]):
            other.store(entry)
            if entry is batches[-1]:
                other.seal()
        assert words.engine.view.digest == other.engine.view.digest
        assert [part.segment.rows for part in words.engine.view.parts] != [
            part.segment.rows for part in other.engine.view.parts
        ]
        for text in ("mesh", "codec delta", "posting bitmap quorum mesh replica"):
            assert words.found(text, 40) == other.found(text, 40)
    finally:
        other.engine.close()
