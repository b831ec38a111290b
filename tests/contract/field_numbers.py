"""Every field and enum value of the contract with its number: `python -m tests.contract.field_numbers` rewrites
the frozen list, which is right only for additions and for reserved removals."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor

from ostraka.v1 import embed_pb2, generator_pb2, passage_pb2, router_pb2, shard_pb2

FROZEN = Path(__file__).with_name("field_numbers.txt")
MODULES = (passage_pb2, embed_pb2, shard_pb2, router_pb2, generator_pb2)
HEADER = "# Frozen numbers of ostraka.v1. Rewrite after an addition: python -m tests.contract.field_numbers\n"
_TYPES = {
    value: name.removeprefix("TYPE_").lower() for name, value in vars(FieldDescriptor).items() if name[:5] == "TYPE_"
}


def lines() -> list[str]:
    """`Message.field = number type` and `Enum.VALUE = number`, sorted."""
    found: list[str] = []
    for module in MODULES:
        found += _messages(module.DESCRIPTOR.message_types_by_name.values())
        found += _enums(module.DESCRIPTOR.enum_types_by_name.values())
    return sorted(found)


def text() -> str:
    """What the frozen file should hold."""
    return HEADER + "".join(f"{line}\n" for line in lines())


def _messages(messages: Iterable[Descriptor]) -> Iterator[str]:
    for message in messages:
        for field in message.fields:
            named = field.message_type or field.enum_type
            kind = named.full_name if named is not None else _TYPES[field.type]
            repeated = "repeated " if field.is_repeated else ""
            yield f"{message.full_name}.{field.name} = {field.number} {repeated}{kind}"
        yield from _messages(message.nested_types)
        yield from _enums(message.enum_types)


def _enums(enums: Iterable[EnumDescriptor]) -> Iterator[str]:
    for enum in enums:
        for value in enum.values:
            yield f"{enum.full_name}.{value.name} = {value.number}"


if __name__ == "__main__":
    FROZEN.write_text(text(), encoding="utf-8")
