"""Filters as they arrive: what is accepted, what it means, and that every refusal names the place."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from ostraka.v1 import passage_pb2 as pb
from services.runtime.conditions import AllOf, AnyOf, Between, In, Not, fields_of, meets, values_of
from services.runtime.config import MetadataKind
from services.runtime.errors import InvalidArgument
from services.runtime.filter_check import DEPTH_MAX, NODES_MAX, VALUES_MAX, condition_of

DECLARED: dict[str, MetadataKind] = {"year": "integer", "lang": "text", "score": "number", "draft": "flag"}
INTEGER = pb.MetadataValue(integer=1)


def one(field: str, value: pb.MetadataValue) -> pb.Filter:
    return pb.Filter(equals=pb.Equals(field=field, value=value))


def spanning(field: str, **bounds: pb.MetadataValue) -> pb.Filter:
    return pb.Filter(range=pb.Range(field=field, **bounds))


def nested(depth: int) -> pb.Filter:
    made = one("year", INTEGER)
    for _ in range(depth - 1):
        made = pb.Filter(negation=made)
    return made


def both(parts: list[pb.Filter]) -> pb.Filter:
    return pb.Filter(all_of=pb.FilterList(filters=parts))


def text(value: str) -> pb.MetadataValue:
    return pb.MetadataValue(text=value)


def number(value: float) -> pb.MetadataValue:
    return pb.MetadataValue(number=value)


def integer(value: int) -> pb.MetadataValue:
    return pb.MetadataValue(integer=value)


REFUSED: list[tuple[str, pb.Filter, str, str]] = [
    ("no condition", pb.Filter(), "filter", "states no condition"),
    ("unknown field", one("yaer", INTEGER), "filter.equals.field", "'yaer' is not declared.*year.*source"),
    ("wrong type", one("year", text("2020")), "filter.equals.value", "is of type text, but year is declared as int"),
    ("fraction for an integer", one("year", number(1.0)), "filter.equals.value", "is of type number"),
    ("number for a flag", one("draft", INTEGER), "filter.equals.value", "declared as flag"),
    ("no value", pb.Filter(equals=pb.Equals(field="year")), "filter.equals.value", "has no value"),
    ("empty value", one("year", pb.MetadataValue()), "filter.equals.value", "has no value"),
    ("NaN", one("score", number(math.nan)), "filter.equals.value", "not a finite number"),
    ("infinity", spanning("score", at_most=number(math.inf)), "filter.range.at_most", "not a finite number"),
    ("empty list", both([]), "filter.all_of.filters", "empty"),
    ("empty any", pb.Filter(any_of=pb.FilterList()), "filter.any_of.filters", "empty"),
    ("bare negation", pb.Filter(negation=pb.Filter()), "filter.negation", "states no condition"),
    ("no values", pb.Filter(one_of=pb.OneOf(field="year")), "filter.one_of.values", "0 values"),
    (
        "many values",
        pb.Filter(one_of=pb.OneOf(field="year", values=[INTEGER] * (VALUES_MAX + 1))),
        "filter.one_of.values",
        "1001 values",
    ),
    (
        "a wrong value among good ones",
        pb.Filter(one_of=pb.OneOf(field="year", values=[INTEGER, text("x")])),
        "filter.one_of.values[1]",
        "type text",
    ),
    ("no bound", spanning("year"), "filter.range", "at least one bound"),
    ("two lower bounds", spanning("year", at_least=INTEGER, above=INTEGER), "filter.range", "both at_least and above"),
    ("two upper bounds", spanning("year", at_most=INTEGER, below=INTEGER), "filter.range", "both at_most and below"),
    ("crossed", spanning("year", at_least=integer(2), at_most=integer(1)), "filter.range", "contradicts itself"),
    ("empty", spanning("score", at_least=number(1), below=number(1)), "filter.range", "contradicts itself"),
    ("between neighbours", spanning("year", above=integer(1), below=integer(2)), "filter.range", "no integer"),
    ("above all", spanning("year", above=integer(2**63 - 1)), "filter.range", "no integer"),
    ("below all", spanning("year", below=integer(-(2**63))), "filter.range", "no integer"),
    ("ordered flags", spanning("draft", at_least=pb.MetadataValue(flag=True)), "filter.range.field", "no order"),
    ("too deep", nested(DEPTH_MAX + 1), "filter", "nested more than 8"),
    ("too many", both([one("year", INTEGER)] * NODES_MAX), "filter", "more than 64"),
    ("too large", one("lang", text("x" * 300_000)), "filter", "262144"),
    (
        "deep inside",
        both([one("year", INTEGER), pb.Filter(negation=spanning("lang", above=INTEGER))]),
        "filter.all_of.filters[1].negation.range.above",
        "type integer",
    ),
]


@pytest.mark.parametrize(("message", "field", "says"), [entry[1:] for entry in REFUSED], ids=[e[0] for e in REFUSED])
def test_what_makes_no_sense_is_refused_where_it_stands(message: pb.Filter, field: str, says: str) -> None:
    with pytest.raises(InvalidArgument, match=says) as caught:
        condition_of(message, DECLARED)
    assert caught.value.field == field


def test_equal_filters_are_equal_conditions() -> None:
    def twice(make: Callable[[], pb.Filter]) -> Any:
        first, second = (condition_of(make(), DECLARED) for _ in range(2))
        assert first == second
        assert hash(first) == hash(second)
        return first

    assert twice(lambda: one("lang", text("en"))) == In("lang", ("en",))
    values = [integer(3), integer(1), integer(3)]
    assert twice(lambda: pb.Filter(one_of=pb.OneOf(field="year", values=values))) == In("year", (1, 3))
    assert twice(lambda: spanning("year", above=integer(1), below=integer(4))) == Between("year", 2, 3)
    assert twice(lambda: spanning("score", above=integer(1))) == Between("score", 1.0, None, low_open=True)
    assert twice(lambda: both([nested(2), one("source", text("s"))])) == AllOf(
        (Not(In("year", (1,))), In("source", ("s",)))
    )
    assert condition_of(both([one("year", INTEGER)] * (NODES_MAX - 1)), DECLARED) == AllOf((In("year", (1,)),) * 63)
    assert condition_of(nested(DEPTH_MAX), DECLARED)


def test_a_passage_without_the_field_meets_negations_only() -> None:
    condition = AnyOf((In("year", (1,)), Not(Between("lang", "a", "b"))))
    assert meets({}, condition)
    assert not meets({"lang": "a"}, condition)
    assert meets({"lang": "a", "year": 1}, condition)
    assert fields_of(condition) == {"year", "lang"}


def test_values_are_of_the_declared_type_or_absent() -> None:
    passage = pb.Passage(source="file:///a", text="t")
    passage.metadata["year"].text = "2020"
    passage.metadata["score"].integer = 2**53 + 1
    passage.metadata["other"].text = "x"
    passage.metadata["draft"].flag = False
    found = values_of(passage, "a", DECLARED)
    assert found == {"document_id": "a", "source": "file:///a", "score": float(2**53), "draft": False}
