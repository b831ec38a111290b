"""The register finds exactly what must not happen."""

from __future__ import annotations

import pytest

from tests.chaos.register import Register


def test_an_acknowledged_revision_must_be_seen() -> None:
    register = Register()
    assert register.problem("d", register.floor("d"), None) == ""
    assert register.begin_write("d") == 1
    register.acknowledge("d", 1)
    assert "nothing was found" in register.problem("d", register.floor("d"), None)
    assert register.problem("d", register.floor("d"), 1) == ""


def test_an_unacknowledged_revision_may_be_seen_and_an_older_one_may_not() -> None:
    register = Register()
    for _ in range(2):
        register.acknowledge("d", register.begin_write("d"))
    register.begin_write("d")
    assert register.problem("d", 2, 3) == ""
    assert register.problem("d", 2, 2) == ""
    assert "revision 2 was acknowledged, 1 was read" in register.problem("d", 2, 1)
    assert "never written" in register.problem("d", 2, 4)


def test_a_read_is_held_against_what_was_acknowledged_when_it_began() -> None:
    register = Register()
    register.acknowledge("d", register.begin_write("d"))
    floor = register.floor("d")
    register.acknowledge("d", register.begin_write("d"))
    assert register.problem("d", floor, 1) == ""


def test_acknowledging_twice_is_a_defect_of_the_test() -> None:
    register = Register()
    register.acknowledge("d", register.begin_write("d"))
    with pytest.raises(AssertionError):
        register.acknowledge("d", 1)
