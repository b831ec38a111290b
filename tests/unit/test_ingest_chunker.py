"""Passages stand exactly for the characters they claim, cover the text and keep their limits."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ostraka.ingest.blocks import BlockKind, Extract
from ostraka.ingest.chunker import Chunk, ChunkLimits, chunk
from ostraka.ingest.readers import READERS
from ostraka.ingest.readers.plain import read_plain

LIMITS = ChunkLimits(words_target=20, overlap_words_max=6, chars_max=200, title_chars_max=60)

words = st.text(
    st.characters(codec="utf-8", exclude_categories=("Cs", "Zs", "Zl", "Zp", "Cc")), min_size=1, max_size=12
)
pieces = st.one_of(
    words,
    words.map(lambda word: f"{word}. "),
    st.sampled_from(
        [" ", "\n", "\n\n", "\r\n", "# Head\n", "Title\n=====\n", "- item ", "```\n", "    code\n", "::\n\n"]
    ),
    st.sampled_from(["def f():\n    return 1\n", "class C:\n    '''Doc.'''\n", "<p>", "</p>", "<h2>H</h2>", "&amp;"]),
    st.just("x" * 450),
)
texts = st.lists(pieces, max_size=60).map("".join)


def uncovered(extract: Extract, chunks: list[Chunk]) -> str:
    """What is neither in a passage nor in a heading nor white space."""
    mask = bytearray(len(extract.text))
    spans = [(piece.start, piece.end) for piece in chunks]
    spans += [(block.start, block.end) for block in extract.blocks if block.kind is BlockKind.HEADING]
    for start, end in spans:
        mask[start:end] = b"\1" * (end - start)
    return "".join(letter for letter, seen in zip(extract.text, mask, strict=True) if not seen).strip()


@pytest.mark.parametrize("suffix", [".txt", ".md", ".rst", ".py", ".html"])
@given(text=texts)
def test_passages_map_to_the_text_cover_it_and_keep_the_limits(suffix: str, text: str) -> None:
    extract = READERS[suffix](text)
    chunks = chunk(extract, LIMITS)
    for piece in chunks:
        assert piece.text == extract.text[piece.start : piece.end]
        assert piece.text.strip()
        assert len(piece.text.split()) <= LIMITS.words_target
        assert len(piece.text) <= LIMITS.chars_max
        assert len(piece.title) <= LIMITS.title_chars_max
        cuts_word = [
            edge
            for edge in (piece.start, piece.end)
            if 0 < edge < len(extract.text) and not re.search(r"\s", extract.text[edge - 1 : edge + 1])
        ]
        # Only a word over the limit, or markup that ends a block inside a word of the file, may be cut.
        if suffix != ".html":
            assert all(len(_word_at(extract.text, edge)) > LIMITS.chars_max for edge in cuts_word)
    assert uncovered(extract, chunks) == ""
    assert [piece.start for piece in chunks] == sorted(piece.start for piece in chunks)


def _word_at(text: str, position: int) -> str:
    return next(m.group() for m in re.finditer(r"\S+", text) if m.start() <= position <= m.end())


@pytest.mark.parametrize("suffix", [".txt", ".md", ".rst", ".py"])
@given(text=texts)
def test_verbatim_formats_keep_the_file(suffix: str, text: str) -> None:
    extract = READERS[suffix](text)
    assert extract.text == text
    ends = [0]
    for block in extract.blocks:
        assert ends[-1] <= block.start <= block.end <= len(text)
        ends.append(block.end)


def sentences(count: int) -> str:
    return " ".join(f"This is sentence number {n}." for n in range(count))


def test_neighbours_share_a_sentence_or_two() -> None:
    chunks = chunk(read_plain(sentences(12)), LIMITS)
    assert len(chunks) > 2
    for left, right in pairwise(chunks):
        shared = left.text[right.start - left.start :]
        assert right.start < left.end
        assert re.fullmatch(r"(This is sentence number \d+\. ?){1,2}", shared)
        assert len(shared.split()) <= LIMITS.overlap_words_max


def test_no_overlap_across_headings() -> None:
    extract = READERS[".md"](f"# One\n\n{sentences(3)}\n\n# Two\n\n{sentences(3)}\n")
    chunks = chunk(extract, LIMITS)
    assert [piece.title for piece in chunks] == ["One", "Two"]
    assert chunks[0].end < chunks[1].start


def test_code_is_not_repeated() -> None:
    extract = READERS[".md"]("```\n" + "".join(f"value_{n} = compute({n})\n" for n in range(30)) + "```\n")
    chunks = chunk(extract, LIMITS)
    assert len(chunks) > 1
    assert all(left.end <= right.start for left, right in pairwise(chunks))


def test_a_document_of_headings_is_still_found() -> None:
    chunks = chunk(READERS[".md"]("# Only a title\n"), LIMITS)
    assert [piece.text for piece in chunks] == ["# Only a title"]


@pytest.mark.parametrize(
    "make", [lambda: ChunkLimits(words_target=5, overlap_words_max=5), lambda: ChunkLimits(chars_max=1)]
)
def test_impossible_limits_are_refused(make: Callable[[], ChunkLimits]) -> None:
    with pytest.raises(ValueError, match="impossible"):
        make()
