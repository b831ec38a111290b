"""A client for the mesh that a mesh file describes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from ostraka.client import Client
from services.runtime.config import Config, load


@asynccontextmanager
async def open_client(mesh_file: Path | None, collection: str = "docs") -> AsyncIterator[Client]:
    """A client of the mesh, with the `client` certificate of its certificates directory."""
    async with client_of(load(mesh_file), collection) as client:
        yield client


def client_of(config: Config, collection: str = "docs") -> Client:
    """A client, not yet opened. Raises CertificateError."""
    return Client(config.router.addresses, certs=config.certs_dir, collection=collection)
