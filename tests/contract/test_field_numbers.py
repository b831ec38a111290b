"""The wire format only grows: numbers and types of what exists never change."""

from __future__ import annotations

from tests.contract import field_numbers
from tests.inprocess import our_services


def test_field_numbers_are_those_frozen() -> None:
    frozen = field_numbers.FROZEN.read_text(encoding="utf-8")
    assert field_numbers.text() == frozen, "contract changed; if only by additions, " + field_numbers.HEADER


def test_enum_zero_is_unspecified() -> None:
    for line in field_numbers.lines():
        name, _, number = line.partition(" = ")
        if number == "0":
            assert name.endswith("_UNSPECIFIED"), line


def test_package_is_versioned() -> None:
    assert {service.full_name.rpartition(".")[0] for service in our_services()} == {"ostraka.v1"}
