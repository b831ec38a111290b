"""Tracing of RPCs: our own grpc.aio interceptors for servers and callers.

The stock instrumentation loses calls that are cancelled; these end every span, with an outcome. Trace context
travels as W3C `traceparent` (and `tracestate`) metadata. Health checks, reflection, the replicas' endless gossip and
questions for newer codecs are not traced; a pull, which gossip leads to when something is missing, is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import grpc
from opentelemetry import context as otel_context
from opentelemetry.trace import Span, SpanContext, SpanKind, Status, StatusCode, TraceState, set_span_in_context

from observability import names, spans
from observability.call_interceptor import CallInterceptor, Proceed, ServicerContext

TRACEPARENT = "traceparent"
TRACESTATE = "tracestate"
_UNTRACED = (
    "/grpc.health.",
    "/grpc.reflection.",
    "/ostraka.v1.ShardService/Gossip",
    "/ostraka.v1.ShardService/GetCodec",
)
_CODES = {code.value[0]: code for code in grpc.StatusCode}
_SERVER_FAULTS = frozenset(
    {
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DATA_LOSS,
    }
)
"""Codes that are the server's fault; others leave a SERVER span's status unset (OpenTelemetry RPC conventions)."""
_OUTCOMES = {
    grpc.StatusCode.OK: names.OUTCOME_OK,
    grpc.StatusCode.CANCELLED: names.OUTCOME_CANCELLED,
    grpc.StatusCode.DEADLINE_EXCEEDED: names.OUTCOME_TIMEOUT,
}
_SUPPRESSED: ContextVar[bool] = ContextVar("ostraka_client_span_suppressed", default=False)


@contextmanager
def suppress_client_span() -> Iterator[None]:
    """Within the block, calls make no CLIENT span; they still carry the current span's context."""
    token = _SUPPRESSED.set(True)
    try:
        yield
    finally:
        _SUPPRESSED.reset(token)


class TracingServerInterceptor(CallInterceptor):
    """A SERVER span around each call, current in the handler; outermost, so that it sees the final status."""

    def __init__(self) -> None:
        super().__init__()
        self._attributes: dict[str, dict[str, spans.AttributeValue]] = {}

    async def around(self, method: str, context: ServicerContext, proceed: Proceed) -> Any:
        if method.startswith(_UNTRACED):
            return await proceed()
        attributes = self._attributes.get(method)
        if attributes is None:
            attributes = self._attributes[method] = rpc_attributes(method)
        held = spans.start_span(method[1:], SpanKind.SERVER, attributes, remote_parent(context.invocation_metadata()))
        # Never detached: the call's task has a context of its own, which ends with it.
        otel_context.attach(set_span_in_context(held))
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
            finish_rpc_span(held, code, code in _SERVER_FAULTS, context)


class _ClientTracing:
    """A CLIENT span from the start of a call to its end, however it ends; traceparent in its metadata."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self._server: dict[str, spans.AttributeValue] = {names.SERVER_ADDRESS: host}
        if port.isdigit():
            self._server[names.SERVER_PORT] = int(port)
        self._attributes: dict[str, dict[str, spans.AttributeValue]] = {}

    async def _call(
        self,
        continuation: Callable[[grpc.aio.ClientCallDetails, Any], Awaitable[Any]],
        details: grpc.aio.ClientCallDetails,
        request: Any,
    ) -> Any:
        method = details.method.decode() if isinstance(details.method, bytes) else details.method
        if method.startswith(_UNTRACED):
            return await continuation(details, request)
        if _SUPPRESSED.get():
            return await continuation(_carrying(details, spans.current_span()), request)
        attributes = self._attributes.get(method)
        if attributes is None:
            attributes = self._attributes[method] = {**rpc_attributes(method), **self._server}
        held = spans.start_span(method[1:], SpanKind.CLIENT, attributes)
        try:
            call = await continuation(_carrying(details, held), request)
        except BaseException as error:
            spans.record_error(held, error)
            spans.end_span(held)
            raise
        call.add_done_callback(lambda done: _client_done(held, done))
        return call


# A channel files an interceptor under the first kind it is an instance of, so each kind needs a class of its own.
class TracingUnaryClientInterceptor(_ClientTracing, grpc.aio.UnaryUnaryClientInterceptor):
    """Traces calls with one reply."""

    async def intercept_unary_unary(
        self,
        continuation: Callable[[grpc.aio.ClientCallDetails, Any], Awaitable[Any]],
        client_call_details: grpc.aio.ClientCallDetails,
        request: Any,
    ) -> Any:
        return await self._call(continuation, client_call_details, request)


class TracingStreamClientInterceptor(_ClientTracing, grpc.aio.UnaryStreamClientInterceptor):
    """Traces calls with a stream of replies."""

    async def intercept_unary_stream(
        self,
        continuation: Callable[[grpc.aio.ClientCallDetails, Any], Awaitable[Any]],
        client_call_details: grpc.aio.ClientCallDetails,
        request: Any,
    ) -> Any:
        return await self._call(continuation, client_call_details, request)


def client_interceptors(address: str) -> Sequence[grpc.aio.ClientInterceptor]:
    """What a traced channel to `address` is opened with."""
    return (TracingUnaryClientInterceptor(address), TracingStreamClientInterceptor(address))


def rpc_attributes(method: str) -> dict[str, spans.AttributeValue]:
    """The attributes every span of this method has."""
    return {names.RPC_SYSTEM: names.RPC_SYSTEM_GRPC, names.RPC_METHOD: method[1:]}


def remote_parent(metadata: Any) -> SpanContext | None:
    """The caller's span context in a call's metadata; None when it sent none, or nonsense."""
    parent, state = None, ""
    for key, value in metadata or ():
        if key == TRACEPARENT and isinstance(value, str):
            parent = spans.parse_traceparent(value)
        elif key == TRACESTATE and isinstance(value, str):
            state = value
    if parent is None or not state:
        return parent
    return SpanContext(parent.trace_id, parent.span_id, True, parent.trace_flags, TraceState.from_header([state]))


def served_code(context: ServicerContext, unset: grpc.StatusCode) -> grpc.StatusCode:
    """The status a handler has set on its call; `unset` when it set none."""
    code: Any = context.code()
    if isinstance(code, grpc.StatusCode):
        found = code
    else:
        found = _CODES.get(code, grpc.StatusCode.UNKNOWN) if code else grpc.StatusCode.OK
    return unset if found is grpc.StatusCode.OK else found


def finish_rpc_span(held: Span, code: grpc.StatusCode, failed: bool, context: ServicerContext | None = None) -> None:
    """Write status and outcome and end the span; never raises."""
    try:
        if held.is_recording():
            held.set_attribute(names.RPC_STATUS_CODE, code.name)
            held.set_attribute(names.OUTCOME, _OUTCOMES.get(code, names.OUTCOME_ERROR))
            if code is not grpc.StatusCode.OK:
                held.set_attribute(names.ERROR_TYPE, code.name)
            if failed:
                details: Any = context.details() if context is not None else code.name
                text = details.decode(errors="replace") if isinstance(details, bytes) else str(details or code.name)
                held.set_status(Status(StatusCode.ERROR, text))
    finally:
        spans.end_span(held)


def _carrying(details: grpc.aio.ClientCallDetails, held: Span) -> grpc.aio.ClientCallDetails:
    """The same call with the span's context in its metadata; a traceparent set by the caller is kept."""
    found = held.get_span_context()
    if not found.is_valid or (details.metadata is not None and details.metadata.get(TRACEPARENT) is not None):
        return details
    metadata = grpc.aio.Metadata(*(details.metadata or ()), (TRACEPARENT, spans.format_traceparent(found)))
    if found.trace_state:
        metadata.add(TRACESTATE, found.trace_state.to_header())
    return grpc.aio.ClientCallDetails(
        details.method, details.timeout, metadata, details.credentials, details.wait_for_ready
    )


def _client_done(held: Span, call: Any) -> None:
    code = _code_of(call)
    finish_rpc_span(held, code, code is not grpc.StatusCode.OK)


def _code_of(call: Any) -> grpc.StatusCode:
    """The status of a call that is done: its `code()` coroutine then returns without waiting."""
    asking = call.code()
    try:
        asking.send(None)
    except StopIteration as answer:
        code: grpc.StatusCode = answer.value
        return code
    except Exception:
        return grpc.StatusCode.UNKNOWN
    finally:
        asking.close()
    return grpc.StatusCode.UNKNOWN
