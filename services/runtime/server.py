"""The one builder of every server: mutual TLS, the interceptor chain, health, reflection, bounded drain."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import grpc
from grpc_health.v1 import health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from observability.logs import logger
from services.runtime.access import ALLOWED
from services.runtime.channel import KEEPALIVE_MS
from services.runtime.config import Config
from services.runtime.errors import StartError
from services.runtime.health import MeshHealth
from services.runtime.interceptors import interceptors
from services.runtime.tls import Role, server_credentials

METADATA_BYTES_MAX = 32 * 1024
"""Headers of one call, trace context included."""
CANCEL_S = 1.0
"""After the grace period, how long cancelled handlers may take to end."""
Registration = tuple[Callable[[Any, Any], None], Any]
"""A generated add_XServicer_to_server function and the servicer."""
_LOG = logger("server")


class MeshServer:
    """A running server. It starts NOT_SERVING; whoever owns it says when it is ready."""

    def __init__(self, server: grpc.aio.Server, health: MeshHealth, port: int, drain_s: float) -> None:
        self._server, self._health, self._drain_s = server, health, drain_s
        self._stopping: asyncio.Task[None] | None = None
        self._announcing: set[asyncio.Task[None]] = set()
        self.port = port

    @classmethod
    async def start(
        cls,
        config: Config,
        *,
        service_name: str,
        role: Role,
        identity: str,
        address: str,
        servicers: Sequence[Registration],
    ) -> MeshServer:
        """Listen on `address` ("host:port", port 0 for any) with the certificate `identity`.

        Raises StartError when the address cannot be bound, ConfigError when the certificate cannot be used.
        """
        credentials = server_credentials(config.certs_dir, identity)
        server = grpc.aio.server(interceptors=interceptors(config.mesh), options=_options(config))
        recorder = _Recorder(server)
        for add_to_server, servicer in servicers:
            add_to_server(servicer, recorder)
        health = MeshHealth(recorder.service_names)
        health_pb2_grpc.add_HealthServicer_to_server(health.servicer, recorder)
        listed = [*recorder.service_names, reflection.SERVICE_NAME]
        reflection_pb2_grpc.add_ServerReflectionServicer_to_server(reflection.aio.ReflectionServicer(listed), recorder)
        unlisted = recorder.methods - set(ALLOWED)
        assert not unlisted, f"methods without an allow-list in services/runtime/access.py: {sorted(unlisted)}"
        await health.set(False)
        try:
            port = server.add_secure_port(address, credentials)
        except RuntimeError as error:
            why = "the port is in use, or the host is not this machine's"
            raise StartError(f"{service_name}: cannot listen on {address}: {why}") from error
        await server.start()
        _LOG.info("listening", server=service_name, role=role.value, address=address, port=port)
        return cls(server, health, port, config.mesh.drain_s)

    @property
    def serving(self) -> bool:
        """What health checks are told."""
        return self._health.serving

    def set_serving(self, serving: bool) -> asyncio.Task[None]:
        """Tell health checks; awaiting the result waits until watches were told too."""
        task = asyncio.ensure_future(self._health.set(serving))
        self._announcing.add(task)
        task.add_done_callback(self._announcing.discard)
        return task

    async def stop(self, grace_s: float | None = None) -> None:
        """Turn NOT_SERVING, refuse new calls, let calls under way finish for `grace_s` (None: `mesh.drain_s`),
        then cancel them. Repeated calls wait for the first."""
        if self._stopping is None:
            self._stopping = asyncio.ensure_future(self._stop(self._drain_s if grace_s is None else grace_s))
        await asyncio.shield(self._stopping)

    async def _stop(self, grace_s: float) -> None:
        await self._health.drain()
        await self._server.stop(grace_s)
        try:
            async with asyncio.timeout(CANCEL_S):
                await self._server.wait_for_termination()
        except TimeoutError:
            _LOG.warning("handlers that were cancelled have not ended", waited_s=CANCEL_S)


class _Recorder:
    """Stands in for the server while services register, and remembers what they are called."""

    def __init__(self, server: grpc.aio.Server) -> None:
        self._server = server
        self.service_names: list[str] = []
        self.methods: set[str] = set()

    def add_generic_rpc_handlers(self, handlers: Iterable[grpc.GenericRpcHandler]) -> None:
        self._server.add_generic_rpc_handlers(tuple(handlers))

    def add_registered_method_handlers(
        self, service_name: str, handlers: Mapping[str, grpc.RpcMethodHandler[Any, Any]]
    ) -> None:
        self.service_names.append(service_name)
        self.methods |= {f"/{service_name}/{name}" for name in handlers}


def _options(config: Config) -> list[tuple[str, int]]:
    return [
        # Two processes on one port would share its calls at random; the second must fail to start.
        ("grpc.so_reuseport", 0),
        ("grpc.max_concurrent_streams", config.mesh.streams_max),
        ("grpc.max_send_message_length", config.mesh.message_bytes_max),
        ("grpc.max_receive_message_length", config.mesh.message_bytes_max),
        ("grpc.max_metadata_size", METADATA_BYTES_MAX),
        # Callers ping every KEEPALIVE_MS; anything up to twice that rate is not abuse.
        ("grpc.http2.min_ping_interval_without_data_ms", KEEPALIVE_MS // 2),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", KEEPALIVE_MS // 2),
    ]
