"""grpc.health.v1 for one server; watches end when the server drains instead of holding it up."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from grpc_health.v1 import health, health_pb2

from observability.logs import logger

_LOG = logger("health")


class MeshHealth:
    """Holds one serving state for the server ("") and all its services; begins as NOT_SERVING."""

    def __init__(self, service_names: Sequence[str]) -> None:
        self.servicer = _DrainingHealthServicer()
        self._names = ("", *service_names)
        self._serving: bool | None = None

    @property
    def serving(self) -> bool:
        """The state that callers are told."""
        return bool(self._serving)

    async def set(self, serving: bool) -> None:
        """Publish the state to checks and watches; a transition is logged."""
        if serving is self._serving:
            return
        if self._serving is not None:
            _LOG.info("serving" if serving else "not serving")
        self._serving = serving
        status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in self._names:
            self.servicer.listed[name] = health_pb2.HealthCheckResponse(status=status)
            await self.servicer.set(name, status)

    async def drain(self) -> None:
        """NOT_SERVING for good, and end every watch."""
        await self.set(False)
        await self.servicer.enter_graceful_shutdown()
        self.servicer.draining.set()


class _DrainingHealthServicer(health.aio.HealthServicer):  # type: ignore[misc]  # grpc_health has no type stubs
    """The reference implementation, with List, and with watches that end when `draining` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.draining = asyncio.Event()
        self.listed: dict[str, health_pb2.HealthCheckResponse] = {}

    async def List(self, _request: health_pb2.HealthListRequest, _context: Any) -> health_pb2.HealthListResponse:
        return health_pb2.HealthListResponse(statuses=self.listed)

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: Any) -> None:
        watching = asyncio.ensure_future(super().Watch(request, context))
        draining = asyncio.ensure_future(self.draining.wait())
        try:
            await asyncio.wait((watching, draining), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (watching, draining):
                task.cancel()
            await asyncio.gather(watching, draining, return_exceptions=True)
