"""The engine of postings against BM25 written with dictionaries, over random corpora in any arrangement."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.shard import alive as bits
from services.shard import lexical_search, statistics
from services.shard.analyzer import Analyzer, RowTerms
from services.shard.lexical_delta import LexicalDelta
from services.shard.lexical_part import LexicalPart
from services.shard.lexical_search import Lexical
from services.shard.lexical_segment import LexicalFileError, LexicalSource, open_lexical, write

ANALYZER = Analyzer("none")
LEXICAL = Lexical(ANALYZER, 1.5, 0.75)
WORDS = ("alpha", "beta", "gamma", "delta", "omega", "read_file", "xx", "yy")

Texts = Sequence[str]
corpora = st.lists(st.lists(st.sampled_from(WORDS), max_size=12).map(" ".join), min_size=1, max_size=40)


def rows_of(texts: Texts) -> list[RowTerms]:
    return [ANALYZER.row(text) for text in texts]


def delta_part(delta: LexicalDelta, rids: Sequence[int], dead: Sequence[int] = ()) -> LexicalPart:
    mask = ~np.isin(np.array(rids, dtype=np.int64), np.array(dead, dtype=np.int64))
    return LexicalPart(
        0, delta.runs, delta.lengths, np.array(rids, dtype=np.int64), bits.from_mask(mask), int(mask.sum())
    )


def segment_part(directory: Path, number: int, sources: Sequence[LexicalPart], rids: Sequence[int]) -> LexicalPart:
    """A file of the rows `rids`, taken from `sources`."""
    path = directory / f"{number}.bin"
    wanted = np.array(rids, dtype=np.int64)
    write(path, wanted, [LexicalSource(p.runs, p.lengths, p.rids) for p in sources], ANALYZER.name)
    opened = open_lexical(path)
    alive = bits.from_mask(np.ones(len(wanted), dtype=np.bool_))
    return LexicalPart(number, (opened.postings,), opened.lengths, wanted, alive, len(wanted))


def without(part: LexicalPart, dead: Sequence[int]) -> LexicalPart:
    mask = bits.to_mask(part.alive, part.rows) & ~np.isin(part.rids, np.array(dead, dtype=np.int64))
    return LexicalPart(part.number, part.runs, part.lengths, part.rids, bits.from_mask(mask), int(mask.sum()))


def naive(texts: dict[int, str], query: str, k1: float = 1.5, b: float = 0.75) -> dict[int, float]:
    """BM25 of every row, with dictionaries."""
    counted = {rid: Counter(ANALYZER.text(text)) for rid, text in texts.items()}
    mean = max(1, sum(c.total() for c in counted.values())) / max(1, len(counted))
    scores = {}
    for rid, counts in counted.items():
        total = 0.0
        for term, weight in Counter(ANALYZER.text(query)).items():
            df = sum(term in other for other in counted.values())
            idf = math.log(1 + (len(counted) - df + 0.5) / (df + 0.5))
            tf = counts[term]
            if tf:
                total += weight * idf * tf / (tf + k1 * (1 - b + b * counts.total() / mean))
        scores[rid] = total
    return scores


def found(parts: Sequence[LexicalPart], query: str, k: int) -> list[tuple[int, float]]:
    terms = ANALYZER.query(query)
    scorer = lexical_search.scorer(terms, statistics.corpus(parts, terms.terms), LEXICAL)
    result = lexical_search.search(parts, scorer, k)
    pairs = sorted(zip(result.rids.tolist(), result.scores.tolist(), strict=True))
    again = lexical_search.scores_of(parts, scorer, result.rids)
    assert again.tolist() == result.scores.tolist(), "two-stage scores are bit-equal"
    return sorted(pairs, key=lambda pair: (-pair[1], pair[0]))


def expected(texts: dict[int, str], query: str, k: int) -> list[tuple[int, float]]:
    """The best k and whatever ties with the k-th."""
    ranked = sorted(
        ((rid, score) for rid, score in naive(texts, query).items() if score > 0), key=lambda p: (-p[1], p[0])
    )
    if len(ranked) > k:
        ranked = [pair for pair in ranked if pair[1] >= ranked[k - 1][1] - 1e-9]
    return ranked


def same(left: list[tuple[int, float]], right: list[tuple[int, float]]) -> None:
    assert sorted(rid for rid, _ in left) == sorted(rid for rid, _ in right)
    assert np.allclose([score for _, score in left], [score for _, score in right], rtol=1e-6)


@given(texts=corpora, query=st.lists(st.sampled_from(WORDS), max_size=5), data=st.data())
@settings(max_examples=150, deadline=None)
def test_any_arrangement_scores_as_dictionaries_do(texts: list[str], query: list[str], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(texts) + 3))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(texts)), min_size=3, max_size=3)))
    dead = data.draw(st.sets(st.integers(0, len(texts) - 1)))
    question = " ".join(query)
    rows = rows_of(texts)
    live = {rid: text for rid, text in enumerate(texts) if rid not in dead}
    with TemporaryDirectory() as name:
        directory = Path(name)
        delta = LexicalDelta.empty()
        for start, end in zip([0, *cuts], [*cuts, len(texts)], strict=True):
            delta = delta.plus(rows[start:end])
        whole = delta_part(delta, range(len(texts)), sorted(dead))
        in_delta = found([whole], question, k)
        same(in_delta, expected(live, question, k))

        shuffled = data.draw(st.permutations(range(cuts[0])))
        first = segment_part(directory, 1, [delta_part(delta, range(len(texts)))], shuffled)
        second = segment_part(directory, 2, [delta_part(delta, range(len(texts)))], range(cuts[0], cuts[1]))
        rest = delta_part(delta.compacted(np.arange(cuts[1], len(texts))), range(cuts[1], len(texts)), sorted(dead))
        sealed = [rest, without(first, sorted(dead)), without(second, sorted(dead))]
        assert found(sealed, question, k) == in_delta

        alive = data.draw(st.permutations(sorted(live)))
        merged = segment_part(directory, 3, sealed, alive)
        assert found([merged], question, k) == in_delta


@given(texts=corpora, data=st.data())
@settings(max_examples=50, deadline=None)
def test_an_older_delta_keeps_seeing_exactly_its_rows(texts: list[str], data: st.DataObject) -> None:
    query = data.draw(st.sampled_from(WORDS))
    delta, versions = LexicalDelta.empty(), []
    for count, row in enumerate(rows_of(texts)):
        versions.append((count, delta, found([delta_part(delta, range(count))], query, 5)))
        delta = delta.plus([row])
        newest = found([delta_part(delta, range(count + 1))], query, count + 1)
        assert (count in dict(newest)) == (query in texts[count].split() or query in texts[count])
    for count, older, before in versions:
        assert found([delta_part(older, range(count))], query, 5) == before


@given(texts=corpora, data=st.data())
@settings(max_examples=50, deadline=None)
def test_the_vocabulary_says_what_each_term_says(texts: list[str], data: st.DataObject) -> None:
    dead = sorted(data.draw(st.sets(st.integers(0, len(texts) - 1))))
    delta = LexicalDelta.empty().plus(rows_of(texts[: len(texts) // 2])).plus(rows_of(texts[len(texts) // 2 :]))
    parts = [delta_part(delta, range(len(texts)), dead)]
    terms = ANALYZER.query(" ".join(WORDS)).terms
    exact, whole = statistics.corpus(parts, terms), statistics.vocabulary(parts)
    assert whole.of(terms).frequencies.tolist() == exact.frequencies.tolist()
    assert (whole.passages, whole.tokens) == (exact.passages, exact.tokens)
    assert bool((whole.frequencies > 0).all())
    short = statistics.vocabulary(parts, terms_max=2)
    assert len(short.terms) <= 2
    assert sorted(short.frequencies)[::-1] == sorted(whole.frequencies)[::-1][:2]


def test_joining_in_small_chunks_gives_the_same_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(7)
    texts = [" ".join(f"word{n}" for n in generator.zipf(1.3, 30) % 500) for _ in range(300)]
    part = delta_part(LexicalDelta.empty().plus(rows_of(texts)), range(300))
    order = generator.permutation(300)[:250]
    segment_part(tmp_path, 1, [part], list(order))
    paused = []
    monkeypatch.setattr("services.shard.lexical_postings.CHUNK_POSTINGS", 100)
    wanted = np.array(order, dtype=np.int64)
    source = LexicalSource(part.runs, part.lengths, part.rids)
    write(tmp_path / "2.bin", wanted, [source], ANALYZER.name, lambda: paused.append(1))
    assert (tmp_path / "1.bin").read_bytes() == (tmp_path / "2.bin").read_bytes()
    assert len(paused) > 20


def test_a_cut_or_foreign_file_is_refused(tmp_path: Path) -> None:
    part = delta_part(LexicalDelta.empty().plus(rows_of(["alpha beta"])), range(1))
    segment_part(tmp_path, 1, [part], [0])
    data = (tmp_path / "1.bin").read_bytes()
    for bad in (data[:40], data[:-1], b"x" * len(data)):
        (tmp_path / "bad.bin").write_bytes(bad)
        with pytest.raises(LexicalFileError, match=r"bad\.bin"):
            open_lexical(tmp_path / "bad.bin")


def test_many_postings_are_scored_term_by_term_to_the_same_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(3)
    part = delta_part(
        LexicalDelta.empty().plus(rows_of([" ".join(generator.choice(WORDS, 9)) for _ in range(200)])), range(200)
    )
    together = found([part], " ".join(WORDS), 50)
    monkeypatch.setattr("services.shard.lexical_search.TOGETHER_MAX", 0)
    assert found([part], " ".join(WORDS), 50) == together


def test_rows_without_words_and_queries_without_terms() -> None:
    part = delta_part(LexicalDelta.empty().plus(rows_of(["", "!!", "alpha"])), range(3))
    assert found([part], "", 5) == []
    assert found([part], "unknown", 5) == []
    assert [rid for rid, _ in found([part], "alpha", 5)] == [2]
    assert found([], "alpha", 5) == []
