"""Traced calls over synchronous gRPC, for users of gevent (the load tests) and scripts.

Each call begins a CLIENT span, carries its traceparent, is measured, and ends its span however it ends: an
error status is part of the outcome, a greenlet killed in the middle ends the span and goes on raising.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import grpc
from opentelemetry.trace import SpanKind

from observability import spans
from observability.rpc import TRACEPARENT, finish_rpc_span, rpc_attributes

Request = TypeVar("Request")
Response = TypeVar("Response")
Metadata = Sequence[tuple[str, str | bytes]]


@dataclass(frozen=True, slots=True)
class Outcome(Generic[Response]):
    """What became of one call."""

    responses: tuple[Response, ...]
    """One for a unary call; what arrived before the end for a stream."""
    code: grpc.StatusCode
    details: str
    elapsed_s: float
    first_s: float
    """Until the first response; equals `elapsed_s` when there was none."""
    trace_id: str
    error: grpc.RpcError | None = None

    @property
    def ok(self) -> bool:
        """Whether the call succeeded."""
        return self.code is grpc.StatusCode.OK

    @property
    def response(self) -> Response:
        """The last response. Raises the call's RpcError when it failed."""
        if self.error is not None:
            raise self.error
        return self.responses[-1]


class TracedMethod(Generic[Request, Response]):
    """One method of one server, called again and again."""

    def __init__(self, method: str, invoke: Callable[[Request, float | None, Metadata], Iterable[Response]]) -> None:
        self._method, self._invoke = method, invoke
        self._attributes = rpc_attributes(method)

    def __call__(
        self, request: Request, *, timeout_s: float | None = None, metadata: Metadata = ()
    ) -> Outcome[Response]:
        """Make the call and wait for its end. RPC errors are in the outcome; anything else is raised."""
        held = spans.start_span(self._method[1:], SpanKind.CLIENT, self._attributes)
        code, details, error = grpc.StatusCode.CANCELLED, "", None
        responses: list[Response] = []
        begun_s = time.perf_counter()
        first_s: float | None = None
        try:
            header = spans.traceparent(held)
            carried = [*metadata, (TRACEPARENT, header)] if header else list(metadata)
            for response in self._invoke(request, timeout_s, carried):
                first_s = first_s or time.perf_counter() - begun_s
                responses.append(response)
            code = grpc.StatusCode.OK
        except grpc.RpcError as raised:
            error = raised
            code, details = raised.code(), raised.details() or ""
        finally:
            elapsed_s = time.perf_counter() - begun_s
            finish_rpc_span(held, code, code is not grpc.StatusCode.OK)
        trace_id = f"{held.get_span_context().trace_id:032x}" if held.get_span_context().is_valid else ""
        return Outcome(tuple(responses), code, details, elapsed_s, first_s or elapsed_s, trace_id, error)


def traced_unary(
    channel: grpc.Channel,
    method: str,
    request_serializer: Callable[[Request], bytes],
    response_deserializer: Callable[[bytes], Response],
) -> TracedMethod[Request, Response]:
    """The method "/package.Service/Method" of one reply."""
    call = channel.unary_unary(method, request_serializer, response_deserializer)

    def invoke(request: Request, timeout_s: float | None, metadata: Metadata) -> Iterable[Response]:
        yield call(request, timeout=timeout_s, metadata=tuple(metadata))

    return TracedMethod(method, invoke)


def traced_stream(
    channel: grpc.Channel,
    method: str,
    request_serializer: Callable[[Request], bytes],
    response_deserializer: Callable[[bytes], Response],
) -> TracedMethod[Request, Response]:
    """The method "/package.Service/Method" of a stream of replies, read to its end."""
    call = channel.unary_stream(method, request_serializer, response_deserializer)

    def invoke(request: Request, timeout_s: float | None, metadata: Metadata) -> Iterable[Response]:
        return call(request, timeout=timeout_s, metadata=tuple(metadata))

    return TracedMethod(method, invoke)
