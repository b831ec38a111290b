"""Citations: the habits of models, and what must hold for any text."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.generator.citations import normalise


@pytest.mark.parametrize(
    ("written", "text", "numbers"),
    [
        ("It is so [1].", "It is so [1].", (1,)),
        ("It is so[2].", "It is so[2].", (2,)),
        ("Both [1,2].", "Both [1][2].", (1, 2)),
        ("Both [1, 2 and 3].", "Both [1][2][3].", (1, 2, 3)),
        ("Both [1; 3].", "Both [1][3].", (1, 3)),
        ("Both [3][1].", "Both [3][1].", (3, 1)),
        ("All [1-3].", "All [1][2][3].", (1, 2, 3)),
        ("All [1–3].", "All [1][2][3].", (1, 2, 3)),
        ("So 【1】.", "So [1].", (1,)),
        ("So 【2†source】.", "So [2].", (2,)),
        ("So [passage 2].", "So [2].", (2,)),
        ("So [Passages 1 and 3].", "So [1][3].", (1, 3)),
        ("So [source: 1].", "So [1].", (1,)),
        ("So [^2].", "So [2].", (2,)),
        ("Twice [1] and [1].", "Twice [1] and [1].", (1,)),
        ("Out of range [4].", "Out of range.", ()),
        ("Partly [2, 9].", "Partly [2].", (2,)),
        ("Never zero [0].", "Never zero.", ()),
        ("Backwards [3-1].", "Backwards [3][1].", (3, 1)),
        ("Pages [1-999] are no citation of each.", "Pages [1] are no citation of each.", (1,)),
        ("Code `a[1]` is not cited.", "Code `a[1]` is not cited.", ()),
        ("```\nb = a[2]\n``` [1]", "```\nb = a[2]\n``` [1]", (1,)),
        ("```\nunclosed [1]", "```\nunclosed [1]", ()),
        ("A list [a, b] and [x1] stay.", "A list [a, b] and [x1] stay.", ()),
        ("Nested [1[9]].", "Nested [1].", (1,)),
        ("Nothing.", "Nothing.", ()),
        ("", "", ()),
    ],
)
def test_examples(written: str, text: str, numbers: tuple[int, ...]) -> None:
    cited = normalise(written, passages=3)
    assert (cited.text, cited.numbers) == (text, numbers)


FRAGMENTS = st.lists(
    st.one_of(
        st.sampled_from(
            [
                "[1]",
                "[2,",
                " 3]",
                "[",
                "]",
                "【",
                "】",
                "†",
                "passage ",
                "-",
                "9",
                "`",
                "```",
                "\n",
                " and ",
                "^",
                "1",
                "a",
            ]
        ),
        st.text(max_size=8),
    ),
    max_size=24,
).map("".join)


@given(FRAGMENTS, st.integers(0, 12))
def test_normalising_is_idempotent_and_numbers_exist(text: str, passages: int) -> None:
    once = normalise(text, passages)
    assert normalise(once.text, passages) == once
    assert all(1 <= number <= passages for number in once.numbers)
    assert len(set(once.numbers)) == len(once.numbers)
    assert all(f"[{number}]" in once.text for number in once.numbers)


@given(FRAGMENTS)
def test_what_is_not_a_citation_survives(text: str) -> None:
    def rest(value: str) -> str:
        return re.sub(r"[\d\s\[\]【】†^,;&+–-]", "", value)

    kept = normalise(text, 10**6).text
    # Only brackets, numbers, listing words and the lens form's label may change.
    assert len(rest(kept)) <= len(rest(text))
    if "【" not in text and not re.search(r"passage|and|source|ref|doc", text, re.IGNORECASE):
        assert rest(kept) == rest(text)


def test_a_long_run_of_spaces_and_brackets_is_read_quickly() -> None:
    text = " " * 20_000 + "[" * 20_000 + "1," * 20_000
    assert normalise(text, 3).text == text
