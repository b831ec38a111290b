"""Real meshes for tests: every process, mutual TLS, free ports, a temporary directory, stopped at the end.

`mesh` is shared by the whole session (the embedding model is loaded once); a test that kills or reconfigures
takes `make_mesh`. On a failed start the error holds the last lines of the log at fault.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, overload

import pytest

from observability.span_record import SpanRecord
from observability.trace_files import read_spans
from ostraka.cli.mesh_file import NODES_DEFAULT, free_ports, mesh_toml, prepare
from ostraka.cli.supervisor import Supervisor
from ostraka.client import Client, ClientOptions
from services.runtime.config import Config

METADATA_TOML = """
[collections.docs.metadata]
year = "integer"
lang = "text"
score = "number"
draft = "flag"
"""
"""What the session's mesh declares."""
START_S = 120.0
POLL_S = 0.05
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Mesh:
    """A running mesh."""

    config: Config
    supervisor: Supervisor

    def client(
        self, collection: str = "docs", *, identity: str = "client", options: ClientOptions | None = None
    ) -> Client:
        """A client to open with `async with`."""
        return Client(
            self.config.router.addresses,
            certs=self.config.certs_dir,
            identity=identity,
            collection=collection,
            options=options,
        )

    def spans(self, trace_id: str = "") -> list[SpanRecord]:
        """What the processes have exported so far; see `eventually`."""
        return read_spans(self.config.traces_dir, trace_id)

    async def kill(self, name: str) -> None:
        """SIGKILL one process and wait for its end."""
        await asyncio.to_thread(self.supervisor.kill, name)

    async def restart(self, name: str) -> None:
        """Start one process again and wait until it says SERVING."""
        await asyncio.to_thread(self.supervisor.start, name)
        await self.supervisor.wait_serving([name], START_S)


MakeMesh = Callable[..., Mesh]
"""(extra_toml: str = "", ports: Mapping[str, int] | None = None) -> Mesh"""


@overload
async def eventually(condition: Callable[[], Awaitable[T]], timeout_s: float = ..., what: str = ...) -> T: ...


@overload
async def eventually(condition: Callable[[], T], timeout_s: float = ..., what: str = ...) -> T: ...


async def eventually(condition: Callable[[], Any], timeout_s: float = 30.0, what: str = "the condition") -> Any:
    """The first truthy value of `condition`, asked again and again. Raises AssertionError with its last value."""
    value = None
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                result = condition()
                value = await result if inspect.isawaitable(result) else result
                if value:
                    return value
                await asyncio.sleep(POLL_S)
    except TimeoutError:
        raise AssertionError(f"{what} did not hold within {timeout_s:g} s; last: {value!r}") from None


def start_mesh(directory: Path, extra_toml: str = "", ports: Mapping[str, int] | None = None) -> Mesh:
    """Start every process of a mesh with collection `docs`, and wait until all say SERVING.

    `extra_toml` is added to the mesh file; `ports` names the nodes too, see `mesh_toml`.
    """
    directory.mkdir(parents=True, exist_ok=True)
    mesh_file = directory / "mesh.toml"
    text = mesh_toml("data", ports or free_ports(("embed", "router", "generator", *NODES_DEFAULT)))
    mesh_file.write_text(f"{text}\n{extra_toml}\n", encoding="utf-8")
    config = prepare(mesh_file)
    supervisor = Supervisor(config)
    try:
        supervisor.start_all()
        asyncio.run(supervisor.wait_serving(timeout_s=START_S))
    except BaseException:
        supervisor.stop_all()
        raise
    return Mesh(config, supervisor)


@pytest.fixture(scope="session")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """The session's mesh: 2 shards x 3 replicas on three nodes, metadata declared.

    Use document ids of your own; kill nothing.
    """
    running = start_mesh(tmp_path_factory.mktemp("mesh"), METADATA_TOML)
    yield running
    running.supervisor.stop_all()


@pytest.fixture
def make_mesh(tmp_path: Path) -> Iterator[MakeMesh]:
    """Meshes of the test's own, each in its own directory; not from within a running event loop."""
    made: list[Mesh] = []

    def make(extra_toml: str = "", ports: Mapping[str, int] | None = None) -> Mesh:
        made.append(start_mesh(tmp_path / f"mesh-{len(made)}", extra_toml, ports))
        return made[-1]

    yield make
    for running in made:
        running.supervisor.stop_all()


@pytest.fixture
def own_mesh(make_mesh: MakeMesh) -> Mesh:
    """A default mesh of the test's own, to kill and restart at will."""
    return make_mesh()


@pytest.fixture
async def mesh_client(mesh: Mesh) -> AsyncIterator[Client]:
    """An open client of the session's mesh, collection `docs`."""
    async with mesh.client() as client:
        yield client
