"""A filter after it was checked: a tree of typed, hashable conditions, and whether a passage's values meet it.

A condition is equal to another exactly when the same tests stand in it in the same places, so it can be the key of a
cache. `meets` is the one definition of what a condition means; the index in SQLite must agree with it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from ostraka.v1 import passage_pb2
from services.runtime.config import MetadataKind

Value: TypeAlias = str | int | float | bool
Values: TypeAlias = Mapping[str, Value]
"""A passage's filterable values by field; what it lacks is absent."""
INT64_MIN, INT64_MAX = -(1 << 63), (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class AllOf:
    """Every part holds; at least one part."""

    parts: tuple[Condition, ...]


@dataclass(frozen=True, slots=True)
class AnyOf:
    """Some part holds; at least one part."""

    parts: tuple[Condition, ...]


@dataclass(frozen=True, slots=True)
class Not:
    """The part does not hold; so it holds for a passage without the field."""

    part: Condition


@dataclass(frozen=True, slots=True)
class In:
    """The field is there and has one of `values`, which are distinct and ascending."""

    field: str
    values: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class Between:
    """The field is there and within the bounds; None: no bound on that side. Text is compared by its UTF-8 bytes."""

    field: str
    low: Value | None
    high: Value | None
    low_open: bool = False
    """`low` itself is outside."""
    high_open: bool = False


Condition: TypeAlias = AllOf | AnyOf | Not | In | Between


def meets(values: Values, condition: Condition) -> bool:
    """Whether a passage with `values` meets the condition. Values and condition follow one declaration."""
    match condition:
        case AllOf(parts):
            return all(meets(values, part) for part in parts)
        case AnyOf(parts):
            return any(meets(values, part) for part in parts)
        case Not(part):
            return not meets(values, part)
        case In(field, wanted):
            return field in values and values[field] in wanted
        case Between(field):
            return field in values and _within(values[field], condition)


def fields_of(condition: Condition) -> frozenset[str]:
    """Every field that the condition names."""
    match condition:
        case AllOf(parts) | AnyOf(parts):
            return frozenset().union(*(fields_of(part) for part in parts))
        case Not(part):
            return fields_of(part)
        case In(field) | Between(field):
            return frozenset({field})


def typed(value: passage_pb2.MetadataValue, kind: MetadataKind) -> Value | None:
    """The value of a field declared as `kind`; None when it is of another type. A number that was given as an integer
    is the nearest double, and what is not finite is no number."""
    given = value.WhichOneof("kind")
    if kind == "number" and given in ("number", "integer"):
        number = float(value.number if given == "number" else value.integer)
        return number if math.isfinite(number) else None
    if given != kind:
        return None
    found: Value = getattr(value, given)
    return found


def values_of(passage: passage_pb2.Passage, document_id: str, declared: Mapping[str, MetadataKind]) -> dict[str, Value]:
    """What a passage can be filtered by: its built-in fields, and declared ones of the declared type."""
    found: dict[str, Value] = {"document_id": document_id, "source": passage.source}
    metadata = passage.metadata
    for name in metadata:  # the keys are cheap, each value is a message
        kind = declared.get(name)
        value = None if kind is None else typed(metadata[name], kind)
        if value is not None:
            found[name] = value
    return found


def _within(value: Value, bounds: Between) -> bool:
    low, high = bounds.low, bounds.high
    # The declaration gives both sides one type, which the type checker cannot know. For text, the order of code points
    # is the order of UTF-8 bytes.
    if low is not None and (value < low or (bounds.low_open and value == low)):  # type: ignore[operator]
        return False
    return high is None or not (value > high or (bounds.high_open and value == high))  # type: ignore[operator]
