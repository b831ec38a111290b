"""Terms: the same everywhere, bounded, and identifiers by whole and part."""

from __future__ import annotations

import sys
import threading

import pytest

from ostraka.v1 import passage_pb2
from services.shard import analyzer
from services.shard.analyzer import QUERY_TERMS_MAX, TERMS_MAX, Analyzer, hash_of

ENGLISH = Analyzer("english")
NONE = Analyzer("none")


def terms(*words: str) -> list[int]:
    return [hash_of(word) for word in words]


def test_the_hash_of_a_term_never_changes() -> None:
    assert hash_of("mesh") == 0x7F0469129D45C70C


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The Running of the bulls", ["run", "bull"]),
        ("read_file", ["read_fil", "read", "file"]),
        ("readFile", ["readfil", "read", "file"]),
        ("HTTPServer", ["httpserver", "http", "server"]),
        ("mRNA and IgG", ["mrna", "igg"]),
        ("std::vector", ["std::vector", "std", "vector"]),
        ("see git-rebase(1).", ["see", "git-rebase(1)", "git", "rebas", "1"]),
        ("IL-2 in Python 3", ["il", "2", "python", "3"]),
        ("well-known", ["well", "known"]),
        ("\uff26\uff55\uff4c\uff4c", ["full"]),
        ("x y", []),
        ("__init__", ["init"]),
        ("it is not", []),
        ("", []),
    ],
)
def test_english(text: str, expected: list[str]) -> None:
    assert ENGLISH.text(text) == terms(*expected)


def test_none_keeps_every_word_as_it_is() -> None:
    assert NONE.text("The Running") == terms("the", "running")
    assert (ENGLISH.name, NONE.name) == ("english-1", "none-1")


def test_what_is_one_identifier_in_the_query_meets_its_words_in_the_text() -> None:
    assert set(ENGLISH.text("read file")) <= set(ENGLISH.text("readFile"))
    assert set(ENGLISH.text("vector")) <= set(ENGLISH.text("std::vector<int>"))


def test_a_giant_text_has_bounded_terms_and_a_giant_word_is_cut() -> None:
    row = NONE.row("ab cd " * TERMS_MAX)
    assert (row.length, row.frequencies.tolist()) == (TERMS_MAX, [TERMS_MAX // 2] * 2)
    assert NONE.text("z" * 70_000) == terms("z" * 64)
    assert NONE.query("ab " * 10_000).weights.tolist() == [QUERY_TERMS_MAX]


@pytest.mark.parametrize("unit", ["a-", "a.", "a::", "A", "_", "(1)", "aB", "\u0130", "\ufdfa"])
def test_no_text_takes_long(unit: str) -> None:
    """Bounded repeats in the patterns: quadratic work on these would meet pytest's time limit."""
    assert len(ENGLISH.text(unit * 60_000)) <= TERMS_MAX


def test_a_surrogate_or_a_broken_payload_is_no_error() -> None:
    assert len(ENGLISH.text("a\ud800bc")) <= 2
    assert ENGLISH.passage(b"\xff\xff").length == 0
    passage = passage_pb2.Passage(title="Read me", text="reading")
    assert ENGLISH.passage(passage.SerializeToString()).length == 3


def test_the_cache_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(analyzer, "CACHE_ENTRIES", 10)
    small = Analyzer("english")
    before = [small.text(f"word{n}") for n in range(50)]
    assert len(small._cache) <= 10
    assert [small.text(f"word{n}") for n in range(50)] == before


def test_threads_agree() -> None:
    texts = [f"running{n} jumps over file_{n % 7}" for n in range(300)]
    expected = [Analyzer("english").text(text) for text in texts]
    shared = Analyzer("english")
    results: list[list[list[int]]] = []
    threads = [threading.Thread(target=lambda: results.append([shared.text(t) for t in texts])) for _ in range(4)]
    switch = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(switch)
    assert results == [expected] * 4
