"""A Filter of the contract, checked against what its collection declares, as a condition.

Every refusal is an InvalidArgument that names the place, such as `filter.all_of.filters[1].range.at_most`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from ostraka.v1 import passage_pb2
from services.runtime.conditions import INT64_MAX, INT64_MIN, AllOf, AnyOf, Between, Condition, In, Not, Value, typed
from services.runtime.config import BUILT_IN_FIELDS, MetadataKind
from services.runtime.errors import InvalidArgument

DEPTH_MAX = 8
NODES_MAX = 64
VALUES_MAX = 1_000
"""In one `one_of`."""
BYTES_MAX = 256 * 1024
"""Of the whole filter as a message."""
_NAMES_SHOWN = 16


def condition_of(message: passage_pb2.Filter, declared: Mapping[str, MetadataKind], where: str = "filter") -> Condition:
    """The condition that `message` states. Raises InvalidArgument."""
    size = message.ByteSize()
    if size > BYTES_MAX:
        raise InvalidArgument(f"takes {size} bytes; at most {BYTES_MAX}", where)
    return _Check(declared, where).condition(message, where, 1)


@dataclass(slots=True)
class _Check:
    declared: Mapping[str, MetadataKind]
    root: str
    nodes: int = 0

    def condition(self, message: passage_pb2.Filter, where: str, depth: int) -> Condition:
        self.nodes += 1
        if self.nodes > NODES_MAX:
            raise InvalidArgument(f"has more than {NODES_MAX} conditions", self.root)
        if depth > DEPTH_MAX:
            raise InvalidArgument(f"is nested more than {DEPTH_MAX} deep", self.root)
        kind = message.WhichOneof("kind")
        if kind == "all_of":
            return AllOf(self._parts(message.all_of, f"{where}.all_of", depth))
        if kind == "any_of":
            return AnyOf(self._parts(message.any_of, f"{where}.any_of", depth))
        if kind == "negation":
            return Not(self.condition(message.negation, f"{where}.negation", depth + 1))
        if kind == "equals":
            place = f"{where}.equals"
            field_kind = self._kind(message.equals.field, f"{place}.field")
            value = message.equals.value if message.equals.HasField("value") else None
            return In(message.equals.field, (_value(value, message.equals.field, field_kind, f"{place}.value"),))
        if kind == "one_of":
            return self._one_of(message.one_of, f"{where}.one_of")
        if kind == "range":
            return self._range(message.range, f"{where}.range")
        raise InvalidArgument("states no condition", where)

    def _parts(self, message: passage_pb2.FilterList, where: str, depth: int) -> tuple[Condition, ...]:
        if not message.filters:
            raise InvalidArgument("is empty; it needs at least one filter", f"{where}.filters")
        return tuple(
            self.condition(part, f"{where}.filters[{index}]", depth + 1) for index, part in enumerate(message.filters)
        )

    def _one_of(self, message: passage_pb2.OneOf, where: str) -> In:
        kind = self._kind(message.field, f"{where}.field")
        count = len(message.values)
        if not 1 <= count <= VALUES_MAX:
            raise InvalidArgument(f"holds {count} values; 1 to {VALUES_MAX}", f"{where}.values")
        values = {
            _value(value, message.field, kind, f"{where}.values[{index}]") for index, value in enumerate(message.values)
        }
        return In(message.field, tuple(sorted(values)))

    def _range(self, message: passage_pb2.Range, where: str) -> Between:
        kind = self._kind(message.field, f"{where}.field")
        if kind == "flag":
            raise InvalidArgument(f"{message.field} is a flag, and flags have no order; use equals", f"{where}.field")
        low, low_open = self._bound(message, kind, where, "at_least", "above")
        high, high_open = self._bound(message, kind, where, "at_most", "below")
        if low is None and high is None:
            raise InvalidArgument("needs at least one bound", where)
        if kind == "integer":
            # Closed bounds are one way to say it, so that equal ranges are equal conditions.
            low, low_open = (low + 1 if low_open and low is not None else low), False  # type: ignore[operator]
            high, high_open = (high - 1 if high_open and high is not None else high), False  # type: ignore[operator]
        if _is_empty(low, high, low_open=low_open, high_open=high_open):
            raise InvalidArgument(f"contradicts itself: no {kind} lies within these bounds", where)
        return Between(message.field, low, high, low_open, high_open)

    def _bound(
        self, message: passage_pb2.Range, kind: MetadataKind, where: str, closed: str, open_: str
    ) -> tuple[Value | None, bool]:
        """(the bound on one side, whether it is open); None without one."""
        has_closed, has_open = message.HasField(closed), message.HasField(open_)  # type: ignore[arg-type]
        if has_closed and has_open:
            raise InvalidArgument(f"has both {closed} and {open_}; give one of them", where)
        if not has_closed and not has_open:
            return None, False
        name = closed if has_closed else open_
        return _value(getattr(message, name), message.field, kind, f"{where}.{name}"), has_open

    def _kind(self, name: str, where: str) -> MetadataKind:
        kind = BUILT_IN_FIELDS.get(name) or self.declared.get(name)
        if kind is None:
            known = [*self.declared, *BUILT_IN_FIELDS]
            shown = ", ".join(known[:_NAMES_SHOWN]) + (", ..." if len(known) > _NAMES_SHOWN else "")
            raise InvalidArgument(f"{name[:80]!r} is not declared in the collection's metadata; known: {shown}", where)
        return kind


def _value(message: passage_pb2.MetadataValue | None, name: str, kind: MetadataKind, where: str) -> Value:
    given = None if message is None else message.WhichOneof("kind")
    if message is None or given is None:
        raise InvalidArgument("has no value", where)
    if given == "number" and not math.isfinite(message.number):
        raise InvalidArgument("is not a finite number", where)
    value = typed(message, kind)
    if value is None:
        raise InvalidArgument(f"is of type {given}, but {name} is declared as {kind}", where)
    return value


def _is_empty(low: Value | None, high: Value | None, *, low_open: bool, high_open: bool) -> bool:
    if isinstance(low, int) and low > INT64_MAX:
        return True
    if isinstance(high, int) and high < INT64_MIN:
        return True
    if low is None or high is None:
        return False
    return low > high or (low == high and (low_open or high_open))  # type: ignore[operator] # one type, as declared
