"""A server interceptor whose unary and streaming calls share one body.

A streaming handler, usually an async generator, is turned into a coroutine that writes to the call itself. So
every interceptor is a plain `async def around(...)` with try and finally: cancellation arrives as CancelledError
at its await, context variables set before `proceed` are seen by the whole handler, generator bodies included,
and nothing is left to the garbage collector. gRPC gives each call a task and a context of its own, so what is
set there needs no reset.
"""

from __future__ import annotations

import abc
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import grpc

ServicerContext = grpc.aio.ServicerContext[Any, Any]
Proceed = Callable[[], Awaitable[Any]]
_Behavior = Callable[[Any, ServicerContext], Awaitable[Any]]


class CallInterceptor(grpc.aio.ServerInterceptor, abc.ABC):
    """Subclasses implement `around`; wrapped handlers are kept per method, so a call costs no building."""

    def __init__(self) -> None:
        self._wrapped: dict[str, tuple[object, grpc.RpcMethodHandler[Any, Any]]] = {}

    @abc.abstractmethod
    async def around(self, method: str, context: ServicerContext, proceed: Proceed) -> Any:
        """Do one job around the call and return what `proceed` returns (None for streaming replies).

        `method` is "/package.Service/Method". Raise to refuse.
        """

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        inner = await continuation(handler_call_details)
        if inner is None:
            return None
        method = handler_call_details.method
        known = self._wrapped.get(method)
        if known is None or known[0] is not inner:
            known = self._wrapped[method] = (inner, self._wrap(method, inner))
        return known[1]

    def _wrap(self, method: str, inner: grpc.RpcMethodHandler[Any, Any]) -> grpc.RpcMethodHandler[Any, Any]:
        around = self.around
        if inner.request_streaming:
            handle = inner.stream_stream if inner.response_streaming else inner.stream_unary
        else:
            handle = inner.unary_stream if inner.response_streaming else inner.unary_unary
        answer = _streaming(handle) if inner.response_streaming else _unary(handle)

        async def call(request: Any, context: ServicerContext) -> Any:
            return await around(method, context, lambda: answer(request, context))

        return _handler(call, inner)


def _unary(handle: Any) -> _Behavior:
    async def answer(request: Any, context: ServicerContext) -> Any:
        result = handle(request, context)
        return await result if inspect.isawaitable(result) else result

    return answer


def _streaming(handle: Any) -> _Behavior:
    async def answer(request: Any, context: ServicerContext) -> None:
        result: Any = handle(request, context)
        if inspect.isawaitable(result):
            await result
            return
        messages: AsyncIterator[Any]
        async with aclosing(result) as messages:
            async for message in messages:
                await context.write(message)

    return answer


def _handler(call: _Behavior, inner: grpc.RpcMethodHandler[Any, Any]) -> grpc.RpcMethodHandler[Any, Any]:
    make: Any = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }[inner.request_streaming, inner.response_streaming]
    made: grpc.RpcMethodHandler[Any, Any] = make(
        call, request_deserializer=inner.request_deserializer, response_serializer=inner.response_serializer
    )
    return made
