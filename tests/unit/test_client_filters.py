"""Conditions as callers write them: comparisons, dictionaries, expressions; all say the same."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ostraka import Filter, where
from ostraka.errors import InvalidRequest
from ostraka.filter_expressions import FilterSyntaxError, filter_to_proto, parse_filter
from ostraka.filters import all_of, any_of

SAME: list[tuple[str, Filter]] = [
    ("year >= 2020", where("year") >= 2020),
    ("year = 2020", where("year") == 2020),
    ("year == -3", where("year") == -3),
    ("score<.5", where("score") < 0.5),
    ("score <= 1e3", where("score") <= 1000.0),
    ("score > +1.", where("score") > 1.0),
    ("lang != 'en'", ~(where("lang") == "en")),
    ("draft = TRUE", where("draft") == True),  # noqa: E712 # a condition, not a comparison
    ('lang in ("en", "de")', where("lang").is_in(["en", "de"])),
    ("lang not in ('en')", ~where("lang").is_in(["en"])),
    ("a = 1 and b = 2 and c = 3", where(a=1, b=2, c=3)),
    ("a = 1 or b = 2 or c = 3", (where("a") == 1) | (where("b") == 2) | (where("c") == 3)),
    ("a = 1 or b = 2 and c = 3", (where("a") == 1) | ((where("b") == 2) & (where("c") == 3))),
    ("(a = 1 or b = 2) and c = 3", ((where("a") == 1) | (where("b") == 2)) & (where("c") == 3)),
    ("not a = 1 and b = 2", ~(where("a") == 1) & (where("b") == 2)),
    ("not (a = 1 and b = 2)", ~where({"a": 1, "b": 2})),
    ("NOT not a = 1", ~~(where("a") == 1)),
    (r"""t = "a\"b\\c\n\u00e9" """, where("t") == 'a"b\\c\né'),
    ("année = 1", where("année") == 1),
    ("y >= 1 and y < 3", where({"y": {">=": 1, "<": 3}})),
]


@pytest.mark.parametrize(("text", "expected"), SAME, ids=[text for text, _ in SAME])
def test_expressions_say_what_comparisons_say(text: str, expected: Filter) -> None:
    assert parse_filter(text) == expected
    assert filter_to_proto(text) == filter_to_proto(expected) == expected.to_proto()


BROKEN: list[tuple[str, int, str]] = [
    ("", 1, "expected a field"),
    ("year", 5, "expected a comparison"),
    ("year >=", 8, "expected a value after >=, not the end"),
    ("year >= and", 9, "not 'and'"),
    ("year >= 20x", 9, "not a number"),
    ('a = "x', 5, "never closed"),
    ("a = en", 5, "texts stand in quotes"),
    ("(a = 1", 7, "expected ), not the end"),
    ("a = 1)", 6, "not ')'"),
    ("a = 1 b = 2", 7, "expected and, or"),
    ("a in 1", 6, "expected ("),
    ("a in (1", 8, "expected )"),
    ("a in ()", 7, "expected a value"),
    ("a in (1,)", 9, "after the comma"),
    ("a not 3", 7, "expected in"),
    ("a = 99999999999999999999", 5, "64 bits"),
    ("a = 1e999", 5, "finite"),
    (r'a = "b\q"', 7, r"\q is no escape"),
    (r'a = "\ud800"', 6, "is no escape"),
    ("a $ 1", 3, "has no meaning"),
    ("and = 1", 1, "not 'and'"),
    ("5 = a", 1, "not '5'"),
    ("(" * 40 + "a = 1" + ")" * 40, 33, "nested"),
    ("not " * 40 + "a = 1", 129, "nested"),
]


@pytest.mark.parametrize(("text", "column", "says"), BROKEN, ids=[text[:20] for text, _, _ in BROKEN])
def test_errors_point_at_the_column(text: str, column: int, says: str) -> None:
    with pytest.raises(FilterSyntaxError, match=re.escape(says)) as caught:
        parse_filter(text)
    assert caught.value.column == column
    assert str(caught.value).startswith(f"column {column}: ")
    _, shown, caret = str(caught.value).split("\n")
    if column <= min(len(text), 36):
        assert shown[caret.index("^")] == text[column - 1]


@given(st.text(max_size=40))
def test_any_text_is_a_condition_or_a_syntax_error(text: str) -> None:
    column = 1
    try:
        parse_filter(text)
    except FilterSyntaxError as error:
        column = error.column
    assert 1 <= column <= len(text) + 1


@given(st.recursive(st.sampled_from(["a = 1", "b in ('x', 'y')", "c >= 0.5", "d != true"]),
                    lambda inner: st.one_of(
                        st.lists(inner, min_size=2, max_size=3).map(lambda parts: f"({' and '.join(parts)})"),
                        st.lists(inner, min_size=2, max_size=3).map(lambda parts: f"({' or '.join(parts)})"),
                        inner.map(lambda part: f"not {part}"))))  # fmt: skip
def test_parentheses_keep_the_shape(text: str) -> None:
    assert parse_filter(text) == parse_filter(f"(({text}))")


def test_values_that_nothing_can_be_compared_with() -> None:
    for value in (float("nan"), float("inf"), None, [1], 1 << 63, "\ud800"):
        with pytest.raises(InvalidRequest) as caught:
            where("year") == value  # noqa: B015 # the comparison raises
        assert caught.value.field == "year"
    wrong: list[dict[str, Any]] = [{}, {"a": {}}, {"a": {"~": 1}}, {"a": {">": [1]}}]
    for conditions in wrong:
        with pytest.raises(InvalidRequest):
            where(conditions)
    with pytest.raises(TypeError, match="&"):
        bool(where("a") == 1)
    for join in (all_of, any_of):
        with pytest.raises(InvalidRequest, match="at least one"):
            join([])
