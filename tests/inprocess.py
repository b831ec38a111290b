"""A real MeshServer inside the test's own process: real TLS, every service of the contract, scripted handlers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from ostraka.v1 import (
    embed_pb2,
    embed_pb2_grpc,
    generator_pb2,
    generator_pb2_grpc,
    router_pb2,
    router_pb2_grpc,
    shard_pb2,
    shard_pb2_grpc,
)
from services.runtime.config import Config, parse
from services.runtime.server import MeshServer, Registration
from services.runtime.tls import Role, dev_certificates

OURS = {
    embed_pb2: embed_pb2_grpc,
    shard_pb2: shard_pb2_grpc,
    router_pb2: router_pb2_grpc,
    generator_pb2: generator_pb2_grpc,
}


def mesh_config(directory: Path, **sections: Any) -> Config:
    """A mesh of three nodes with certificates, in `directory`; `sections` override the mesh file's."""
    nodes = {name: {"address": f"127.0.0.1:{port}"} for port, name in enumerate(("n1", "n2", "n3"), start=1)}
    config = parse({"nodes": nodes, **sections}, directory / "mesh.toml", {})
    dev_certificates(config)
    return config


def our_services() -> list[ServiceDescriptor]:
    """Every service that ostraka.v1 declares."""
    return [service for module in OURS for service in module.DESCRIPTOR.services_by_name.values()]


def every_service() -> list[ServiceDescriptor]:
    """Ours and the two that stand on every server."""
    standard = (health_pb2, reflection_pb2)
    return our_services() + [s for module in standard for s in module.DESCRIPTOR.services_by_name.values()]


def every_method() -> dict[str, MethodDescriptor]:
    """Full name, "/package.Service/Method", to descriptor."""
    return {f"/{service.full_name}/{method.name}": method for service in every_service() for method in service.methods}


def generic_servicers(behaviors: Mapping[str, Any] | None = None) -> list[Registration]:
    """A servicer for each of our services; methods answer with an empty message unless `behaviors` has a handler
    under the method's full name."""
    made: list[Registration] = []
    for module, stubs in OURS.items():
        for service in module.DESCRIPTOR.services_by_name.values():
            base = getattr(stubs, f"{service.name}Servicer")
            handlers = {
                method.name: (behaviors or {}).get(f"/{service.full_name}/{method.name}") or _empty(method)
                for method in service.methods
            }
            servicer = type(f"Generic{service.name}", (base,), {k: staticmethod(v) for k, v in handlers.items()})()
            made.append((getattr(stubs, f"add_{service.name}Servicer_to_server"), servicer))
    return made


@asynccontextmanager
async def running_server(
    config: Config, behaviors: Mapping[str, Any] | None = None, identity: str = "embed"
) -> AsyncIterator[MeshServer]:
    """A server with every service on a free port, stopped at the end."""
    server = await MeshServer.start(
        config,
        service_name="test",
        role=Role.EMBED,
        identity=identity,
        address="127.0.0.1:0",
        servicers=generic_servicers(behaviors),
    )
    try:
        yield server
    finally:
        await server.stop(0)


def _empty(method: MethodDescriptor) -> Any:
    reply = message_factory.GetMessageClass(method.output_type)

    async def unary(request: Any, context: Any) -> Any:
        return reply()

    async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
        yield reply()

    return stream if method.server_streaming else unary
