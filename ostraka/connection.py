"""Channels to the routers, and one call through them: trace context, deadline, retries where safe."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar

import grpc
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from ostraka.credentials import ROUTER_NAME, Credentials
from ostraka.errors import DeadlineExceeded, OstrakaError, from_rpc_error
from ostraka.retry import RetryPolicy
from ostraka.v1.router_pb2_grpc import RouterServiceStub

if TYPE_CHECKING:
    # The asynchronous stub exists for type checkers only; at run time one class serves both kinds of channel.
    from ostraka.v1.router_pb2_grpc import RouterServiceAsyncStub

ResponseT = TypeVar("ResponseT", covariant=True)
EventT = TypeVar("EventT")
RpcMetadata: TypeAlias = tuple[tuple[str, str], ...]

# Only `traceparent` and `tracestate`: baggage would carry a caller's values through every process.
_TRACE_CONTEXT = TraceContextTextMapPropagator()


class UnaryCall(Protocol[ResponseT]):
    """A request already bound to a method: called with a stub, a timeout in seconds and metadata."""

    def __call__(
        self, stub: RouterServiceAsyncStub, *, timeout: float, metadata: RpcMetadata
    ) -> Awaitable[ResponseT]: ...


StreamCall: TypeAlias = Callable[["RouterServiceAsyncStub", float, RpcMetadata], grpc.aio.UnaryStreamCall[Any, EventT]]


class Deadline:
    """A point on the event loop's clock that a call and all its repetitions share."""

    def __init__(self, timeout_s: float) -> None:
        if timeout_s <= 0:
            raise DeadlineExceeded(f"timeout_s must be positive, not {timeout_s}", field="timeout_s")
        self._expires_s = asyncio.get_running_loop().time() + timeout_s

    def remaining_s(self) -> float:
        """Seconds left, at least 0."""
        return max(0.0, self._expires_s - asyncio.get_running_loop().time())


class Connection:
    """One TLS channel per router address, used in turn; a repetition goes to the next one."""

    def __init__(
        self, addresses: Sequence[str], credentials: Credentials, policy: RetryPolicy, message_bytes_max: int
    ) -> None:
        self._policy = policy
        # Jitter needs no seed: nothing it decides is visible in a result.
        self._random = random.SystemRandom()
        options = [
            ("grpc.ssl_target_name_override", ROUTER_NAME),
            ("grpc.max_send_message_length", message_bytes_max),
            ("grpc.max_receive_message_length", message_bytes_max),
            ("grpc.keepalive_time_ms", 30_000),
            # A router that was restarted is found again within this, not after gRPC's 20 s.
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.min_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 2_000),
            # A proxy from the environment must not see what is asked.
            ("grpc.enable_http_proxy", 0),
        ]
        tls = credentials.channel_credentials()
        self._channels = [grpc.aio.secure_channel(address, tls, options=options) for address in addresses]
        stubs = [RouterServiceStub(channel) for channel in self._channels]
        self._turns = itertools.cycle(zip(self._channels, stubs, strict=True))

    async def close(self) -> None:
        """Cancel what is under way and close every channel."""
        for channel in self._channels:
            await channel.close()

    async def unary(self, call: UnaryCall[ResponseT], deadline: Deadline, *, read: bool) -> ResponseT:
        """Call until it succeeds, cannot be repeated safely, or the deadline passes. Raises OstrakaError."""
        for attempt in itertools.count(1):
            try:
                return await call(self._stub(), timeout=deadline.remaining_s(), metadata=trace_metadata())
            except grpc.aio.AioRpcError as failure:
                await self._pause_or_raise(from_rpc_error(failure), failure, attempt, deadline, read=read)
        raise AssertionError("itertools.count ended")

    async def stream(self, call: StreamCall[EventT], deadline: Deadline) -> AsyncGenerator[EventT, None]:
        """The events of a reading stream; called again only while nothing has arrived. Raises OstrakaError."""
        for attempt in itertools.count(1):
            arrived = False
            rpc = call(self._stub(), deadline.remaining_s(), trace_metadata())
            try:
                async for event in rpc:
                    arrived = True
                    yield event
                return
            except grpc.aio.AioRpcError as failure:
                error = from_rpc_error(failure)
                if arrived:
                    raise error from failure
                await self._pause_or_raise(error, failure, attempt, deadline, read=True)
            finally:
                # Whoever stops listening stops the work behind it too, the language model's included.
                rpc.cancel()

    async def _pause_or_raise(
        self, error: OstrakaError, cause: BaseException, attempt: int, deadline: Deadline, *, read: bool
    ) -> None:
        pause_s = self._policy.next_pause_s(
            error, attempt=attempt, remaining_s=deadline.remaining_s(), read=read, jitter=self._random.random()
        )
        if pause_s is None:
            raise error from cause
        await asyncio.sleep(pause_s)

    def _stub(self) -> RouterServiceAsyncStub:
        """The next router, passing over those known to be out of reach while another is not."""
        for _ in self._channels:
            channel, stub = next(self._turns)
            if channel.get_state(try_to_connect=True) is not grpc.ChannelConnectivity.TRANSIENT_FAILURE:
                break
        return stub


def trace_metadata() -> RpcMetadata:
    """The caller's current trace context as W3C headers; empty when it has none."""
    carrier: dict[str, str] = {}
    _TRACE_CONTEXT.inject(carrier)
    return tuple(carrier.items())
