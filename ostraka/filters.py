"""Conditions on passages, for `where=` of searches, listings, exports and deletions.

    where("year") >= 2020
    (where("lang") == "en") & ~(where("draft") == True)
    where("lang").is_in(["en", "de"]) | where("year").between(1990, 1999)
    where(lang="en", draft=False)                             every one of these
    where({"lang": ["en", "de"], "year": {">=": 1990, "<": 2000}})

A field is one that the collection declares in the mesh file, or the built-in `source` or `document_id`. A passage
without the field meets no comparison with it, and so meets the negation of each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, NoReturn, TypeAlias, overload

from ostraka.errors import InvalidRequest
from ostraka.results import MetadataScalar
from ostraka.v1 import passage_pb2 as pb

FilterLike: TypeAlias = "Filter | Mapping[str, Any] | str"
"""A condition, its form as a dictionary, or an expression such as `year >= 2020 and lang in ("en", "de")`."""


class Filter:
    """A condition; join with `&`, `|`, `~`. Immutable."""

    __slots__ = ("_message",)

    def __init__(self, message: pb.Filter) -> None:
        self._message = message

    def to_proto(self) -> pb.Filter:
        """The condition as the contract's message, a copy."""
        copied = pb.Filter()
        copied.CopyFrom(self._message)
        return copied

    def __and__(self, other: Filter) -> Filter:
        return all_of([self, other])

    def __or__(self, other: Filter) -> Filter:
        return any_of([self, other])

    def __invert__(self) -> Filter:
        return Filter(pb.Filter(negation=self._message))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Filter) and self._message == other._message

    def __hash__(self) -> int:
        return hash(self._message.SerializeToString(deterministic=True))

    def __bool__(self) -> NoReturn:
        raise TypeError("a condition is neither true nor false: join conditions with &, | and ~, not and, or, not")

    def __repr__(self) -> str:
        return f"Filter({self._message!r})"


class Field:
    """A field to compare; every comparison is a Filter."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def __eq__(self, value: object) -> Filter:  # type: ignore[override]
        message = pb.Filter()
        message.equals.field = self.name
        message.equals.value.CopyFrom(to_value(value, self.name))
        return Filter(message)

    def __ne__(self, value: object) -> Filter:  # type: ignore[override]
        return ~(self == value)

    __hash__ = None  # type: ignore[assignment]

    def __lt__(self, value: MetadataScalar) -> Filter:
        return self._range(below=value)

    def __le__(self, value: MetadataScalar) -> Filter:
        return self._range(at_most=value)

    def __gt__(self, value: MetadataScalar) -> Filter:
        return self._range(above=value)

    def __ge__(self, value: MetadataScalar) -> Filter:
        return self._range(at_least=value)

    def between(self, low: MetadataScalar, high: MetadataScalar) -> Filter:
        """From `low` to `high`, both included."""
        return self._range(at_least=low, at_most=high)

    def is_in(self, values: Iterable[MetadataScalar]) -> Filter:
        """One of these."""
        message = pb.Filter(one_of=pb.OneOf(field=self.name))
        message.one_of.values.extend(to_value(value, self.name) for value in values)
        return Filter(message)

    def _range(self, **bounds: MetadataScalar) -> Filter:
        message = pb.Filter(range=pb.Range(field=self.name))
        for name, value in bounds.items():
            getattr(message.range, name).CopyFrom(to_value(value, self.name))
        return Filter(message)


COMPARISONS: Final[Mapping[str, Callable[[Field, Any], Filter]]] = {
    "=": lambda field, value: field == value,
    "==": lambda field, value: field == value,
    "!=": lambda field, value: field != value,
    "<": lambda field, value: field < value,
    "<=": lambda field, value: field <= value,
    ">": lambda field, value: field > value,
    ">=": lambda field, value: field >= value,
}


@overload
def where(field: str, /) -> Field: ...
@overload
def where(conditions: Mapping[str, Any], /) -> Filter: ...
@overload
def where(**fields: Any) -> Filter: ...
def where(what: str | Mapping[str, Any] | None = None, /, **fields: Any) -> Field | Filter:
    """A field to compare, or a condition from a dictionary or keywords, all of which must hold.

    A value means equality, a list one of them, a dictionary comparisons by sign. Raises InvalidRequest.
    """
    if isinstance(what, str):
        if fields:
            raise InvalidRequest("where: name either one field or conditions", field="where")
        return Field(what)
    conditions = {**(what or {}), **fields}
    if not conditions:
        raise InvalidRequest("where: needs at least one condition", field="where")
    return all_of([_condition(Field(name), value) for name, value in conditions.items()])


def all_of(filters: Iterable[Filter]) -> Filter:
    """Every one holds."""
    return _joined(filters, "all_of")


def any_of(filters: Iterable[Filter]) -> Filter:
    """At least one holds."""
    return _joined(filters, "any_of")


def to_value(value: object, name: str) -> pb.MetadataValue:
    """A value of the contract. Raises InvalidRequest naming the field."""
    if isinstance(value, bool):  # before int: a bool is one
        return pb.MetadataValue(flag=value)
    if isinstance(value, str):
        try:
            return pb.MetadataValue(text=value)
        except ValueError as error:  # a lone surrogate
            raise InvalidRequest(f"{name}: {error}", field=name) from error
    if isinstance(value, int):
        if not -(1 << 63) <= value < 1 << 63:
            raise InvalidRequest(f"{name}: {value} does not fit into 64 bits", field=name)
        return pb.MetadataValue(integer=value)
    if isinstance(value, float) and math.isfinite(value):
        return pb.MetadataValue(number=value)
    raise InvalidRequest(f"{name}: compare with a text, integer, finite number or flag, not {value!r}", field=name)


def _joined(filters: Iterable[Filter], kind: str) -> Filter:
    """One condition of several; those of the same kind are not nested, since depth is limited."""
    parts = list(filters)
    if not parts:
        raise InvalidRequest(f"{kind}: needs at least one condition", field="where")
    if len(parts) == 1:
        return parts[0]
    message = pb.Filter()
    joined: pb.FilterList = getattr(message, kind)
    for part in parts:
        own = part.to_proto()
        if own.WhichOneof("kind") == kind:
            joined.filters.extend(getattr(own, kind).filters)
        else:
            joined.filters.append(own)
    return Filter(message)


def _condition(field: Field, value: object) -> Filter:
    if isinstance(value, Mapping):
        if not value:
            raise InvalidRequest(f"{field.name}: needs a comparison", field=field.name)
        parts = []
        for sign, bound in value.items():
            if sign not in COMPARISONS:
                known = ", ".join(COMPARISONS)
                raise InvalidRequest(f"{field.name}: {sign!r} is no comparison; known: {known}", field=field.name)
            parts.append(COMPARISONS[sign](field, bound))
        return all_of(parts)
    if isinstance(value, (list, tuple, set, frozenset)):
        return field.is_in(value)
    return field == value
