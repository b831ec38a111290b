"""Fixtures for every test."""

from __future__ import annotations

from tests.mesh import make_mesh, mesh, mesh_client, own_mesh

__all__ = ["make_mesh", "mesh", "mesh_client", "own_mesh"]
