"""The server's interceptors, one job each, and the order they run in.

    tracing      a SERVER span; sees the final status           (observability.rpc)
    access log   one line per call; sees the final status
    errors       MeshError -> status with details; anything else -> INTERNAL, with a traceback in the log
    role         the caller's certificate against the allow-list
    deadline     default, maximum, refusal of spent ones, and enforcement

Health and reflection pass the same chain, except that a health watch lives as long as its watcher.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import grpc

from observability import logs, metrics, names, spans
from observability.call_interceptor import CallInterceptor, Proceed, ServicerContext
from observability.rpc import TracingServerInterceptor, served_code
from services.runtime import deadline as deadlines
from services.runtime.access import allowed
from services.runtime.clock import SYSTEM_CLOCK, Clock
from services.runtime.config import MeshConfig
from services.runtime.deadline import Deadline
from services.runtime.errors import (
    DeadlineExceeded,
    Internal,
    MeshError,
    PermissionDenied,
    Unauthenticated,
    Unimplemented,
    from_rpc_error,
    to_rpc_status,
)
from services.runtime.tls import Role, roles_of

PACED = frozenset({"/ostraka.v1.RouterService/Export"})
"""Streams as long as their collection: the handler gives each of their pages a deadline, and gRPC enforces the
caller's own, if it set one."""
REPLY_RESERVE_MS = 5
"""Taken off the caller's deadline, so that the reason for failing still reaches it."""
_OK = grpc.StatusCode.OK
_SAN_KEY = "x509_subject_alternative_name"
_LOG = logs.logger("rpc")


def interceptors(mesh: MeshConfig, clock: Clock = SYSTEM_CLOCK) -> Sequence[grpc.aio.ServerInterceptor]:
    """The chain of every server, outermost first."""
    return (
        TracingServerInterceptor(),
        AccessLogInterceptor(clock),
        ErrorInterceptor(),
        RoleInterceptor(),
        DeadlineInterceptor(mesh.deadline_ms_default, mesh.deadline_ms_max, clock),
    )


class AccessLogInterceptor(CallInterceptor):
    """One line and one duration per finished call: method, caller's role, status, time, trace id."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock

    async def around(self, method: str, context: ServicerContext, proceed: Proceed) -> Any:
        begun_s = self._clock.monotonic_s()
        code = grpc.StatusCode.UNKNOWN
        try:
            response = await proceed()
            code = served_code(context, grpc.StatusCode.OK)
            return response
        except asyncio.CancelledError:
            code = grpc.StatusCode.CANCELLED
            raise
        except BaseException:
            code = served_code(context, grpc.StatusCode.UNKNOWN)
            raise
        finally:
            roles = ",".join(sorted(caller_roles(context))) or "none"
            took_s = self._clock.monotonic_s() - begun_s
            logs.access(method, roles, code.name, took_s * 1_000, context.peer())
            labels = {names.RPC_METHOD: method.removeprefix("/"), names.RPC_STATUS_CODE: code.name}
            metrics.record(metrics.RPC_DURATION, took_s, labels)


class ErrorInterceptor(CallInterceptor):
    """Turns what a handler raises into the status that crosses the wire."""

    async def around(self, method: str, context: ServicerContext, proceed: Proceed) -> Any:
        try:
            return await proceed()
        except MeshError as error:
            found = error
        except grpc.aio.AioRpcError as error:
            # A downstream status that the handler did not interpret still says more than INTERNAL.
            found = from_rpc_error(error)
        except grpc.aio.AbortError:
            raise
        except Exception as error:
            if isinstance(error, NotImplementedError) and served_code(context, _OK) is grpc.StatusCode.UNIMPLEMENTED:
                # What generated servicers do for a method that nobody wrote.
                return await context.abort_with_status(to_rpc_status(Unimplemented(f"{method[1:]} is not served here")))
            trace_id = spans.current_trace_id()
            _LOG.exception("a handler failed", error, method=method)
            found = Internal(f"internal error; the server's log has it under trace {trace_id or 'unknown'}")
        if found.code in (grpc.StatusCode.INTERNAL, grpc.StatusCode.DATA_LOSS):
            spans.record_error(spans.current_span(), found)
        return await context.abort_with_status(to_rpc_status(found))


class RoleInterceptor(CallInterceptor):
    """Lets a call pass only if the role in the caller's certificate is on the method's list."""

    async def around(self, method: str, context: ServicerContext, proceed: Proceed) -> Any:
        roles = caller_roles(context)
        if len(roles) != 1:
            raise Unauthenticated("the client certificate must name exactly one role in its alternative names")
        (role,) = roles
        if not allowed(method, role):
            raise PermissionDenied(f"role {role.value} may not call {method[1:]}", metadata={"role": role.value})
        return await proceed()


class DeadlineInterceptor(CallInterceptor):
    """Gives every call a deadline, shortens long ones, refuses spent ones, and stops what overruns."""

    def __init__(self, default_ms: int, max_ms: int, clock: Clock) -> None:
        super().__init__()
        self._default_ms, self._max_ms, self._clock = default_ms, max_ms, clock

    async def around(self, method: str, context: ServicerContext, proceed: Proceed) -> Any:
        if method.startswith("/grpc.") or method in PACED:
            return await proceed()
        given_s: float | None = context.time_remaining()
        budget_ms = self._default_ms if given_s is None else given_s * 1_000 - _rounding_ms(given_s * 1_000)
        budget_ms = min(budget_ms, self._max_ms) - REPLY_RESERVE_MS
        if budget_ms <= 0:
            raise DeadlineExceeded("the deadline was spent before the call arrived", definite=True)
        with deadlines.use_deadline(Deadline.after_ms(budget_ms, self._clock)):
            try:
                async with asyncio.timeout(budget_ms / 1_000) as overrun:
                    return await proceed()
            except TimeoutError:
                if not overrun.expired():
                    raise
                raise DeadlineExceeded(f"{method[1:]} was not done within {budget_ms:.0f} ms") from None


def caller_roles(context: ServicerContext) -> frozenset[Role]:
    """The roles that the caller's verified certificate names."""
    names = context.auth_context().get(_SAN_KEY, ())
    return roles_of(name.decode(errors="replace") for name in names)


def _rounding_ms(given_ms: float) -> int:
    """How much longer than the caller's own deadline the one on the wire may be: gRPC rounds it up to 1, 10, 100
    or 1,000 ms, below 1, 10, 100 seconds and beyond."""
    return next((unit for limit, unit in ((1_000, 1), (10_000, 10), (100_000, 100)) if given_ms <= limit), 1_000)
