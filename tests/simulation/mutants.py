"""Broken protocols: if the simulator cannot see these, its silence means nothing."""

from __future__ import annotations

from tests.simulation.cluster import Parts

MUTANTS: dict[str, Parts] = {}
