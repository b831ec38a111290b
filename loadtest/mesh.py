"""The mesh under load: one that runs already, one started for the run, or a throw-away one of its own."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from ostraka.cli.mesh_file import NODES_DEFAULT, free_ports, mesh_toml, prepare, write_default
from ostraka.cli.supervisor import Supervisor
from ostraka.client import Client
from services.runtime.channel import open_channel
from services.runtime.config import Config, ConfigError, mesh_file_path
from services.runtime.tls import Role

PROBE_TIMEOUT_S = 2.0
START_TIMEOUT_S = 120.0


@asynccontextmanager
async def running_mesh(mesh_file: Path | None, *, collection: str) -> AsyncIterator[Config]:
    """A serving mesh that declares `collection`.

    `mesh_file` None: `OSTRAKA_MESH_FILE` or `mesh.toml` in the working directory, written when there is none. What
    is not running is started, and stopped again at the end; what is running is left alone. Raises ConfigError,
    SupervisorError.
    """
    path = mesh_file_path(mesh_file)
    if mesh_file is None:
        write_default(path)
    config = prepare(path)
    if collection not in config.collections:
        known = ", ".join(config.collections) or "none"
        raise ConfigError(f"{config.path}: no [collections.{collection}]; declared: {known}")
    if await _router_serves(config):
        yield config
        return
    async with _started(config):
        yield config


@asynccontextmanager
async def temporary_mesh(tables: str) -> AsyncIterator[Config]:
    """A mesh of three nodes on free ports in a directory that is removed at the end.

    `tables`: TOML appended to the mesh file, such as further collections.
    """
    with tempfile.TemporaryDirectory(prefix="ostraka-", ignore_cleanup_errors=True) as directory:
        path = Path(directory) / "mesh.toml"
        ports = free_ports(("embed", "router", "generator", *NODES_DEFAULT))
        path.write_text(mesh_toml(ports=ports) + tables, encoding="utf-8")
        config = prepare(path)
        async with _started(config):
            yield config


def client_of(config: Config, collection: str) -> Client:
    """A client with the mesh's own client certificate; open it with `async with`."""
    return Client(config.router.addresses, certs=config.certs_dir, collection=collection)


@asynccontextmanager
async def _started(config: Config) -> AsyncIterator[None]:
    supervisor = Supervisor(config)
    started = supervisor.start_all()
    try:
        await supervisor.wait_serving(timeout_s=START_TIMEOUT_S)
        yield
    finally:
        supervisor.stop([name for name in reversed(supervisor.seats) if name in started])


async def _router_serves(config: Config) -> bool:
    async with open_channel(
        config, config.router.addresses[0], server_role=Role.ROUTER, identity=Role.ADMIN.value
    ) as channel:
        try:
            reply = await health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(), timeout=PROBE_TIMEOUT_S
            )
        except grpc.aio.AioRpcError:
            return False
    return bool(reply.status == health_pb2.HealthCheckResponse.SERVING)
