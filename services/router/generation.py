"""The generator, called with a question and passages; its stream ends when the caller goes away."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import TYPE_CHECKING

import grpc
from opentelemetry.trace import Span

from observability import spans
from observability.rpc import suppress_client_span
from ostraka.v1 import generator_pb2, passage_pb2
from ostraka.v1.generator_pb2_grpc import GeneratorServiceStub
from services.router.node_links import trace_metadata
from services.runtime.channel import ChannelPool
from services.runtime.deadline import Deadline
from services.runtime.errors import Internal, MeshError, Unavailable, from_rpc_error

if TYPE_CHECKING:
    from ostraka.v1.generator_pb2_grpc import GeneratorServiceAsyncStub

# A prompt holds a few dozen passages at most; more would only cost bytes.
PROMPT_CANDIDATES_MAX = 64
PROMPT_BYTES_MAX = 4 * 1024 * 1024


class Generation:
    """Every call to the generator."""

    def __init__(self, channels: ChannelPool) -> None:
        self._stubs: tuple[GeneratorServiceAsyncStub, ...] = tuple(
            GeneratorServiceStub(channel) for channel in channels.channels
        )
        self._turn = 0

    async def stream(
        self,
        question: str,
        passages: Sequence[tuple[passage_pb2.Passage, float]],
        max_tokens: int,
        deadline: Deadline,
        chat: Span,
    ) -> AsyncGenerator[generator_pb2.GenerateEvent]:
        """Events of one generation, the prompt first and the whole answer last.

        `passages` are (passage, score), best first. `chat` is the span the generator answers under. Closing the
        iterator cancels the call. Raises MeshError.
        """
        request = generator_pb2.GenerateRequest(question=question, max_tokens=max_tokens)
        size = 0
        for passage, score in passages[:PROMPT_CANDIDATES_MAX]:
            size += len(passage.text) * 4
            if size > PROMPT_BYTES_MAX and request.passages:
                break
            request.passages.add(passage=passage, score=score)
        for attempt in range(len(self._stubs)):
            deadline.check("generation")
            begun = finished = False
            with suppress_client_span():
                call = self._next().Generate(
                    request, timeout=deadline.remaining_s(), metadata=trace_metadata(spans.traceparent(chat))
                )
            try:
                async for event in call:
                    begun, finished = True, event.WhichOneof("event") == "generated"
                    yield event
                if not finished:
                    raise Internal("the generator ended its stream without an answer")
                return
            except grpc.aio.AioRpcError as error:
                failure = from_rpc_error(error)
                # Until the first event nothing was shown, so another address may answer instead.
                if begun or not isinstance(failure, Unavailable) or attempt + 1 == len(self._stubs):
                    raise _explained(failure) from error
            finally:
                call.cancel()

    def _next(self) -> GeneratorServiceAsyncStub:
        self._turn = (self._turn + 1) % len(self._stubs)
        return self._stubs[self._turn]


def _explained(failure: MeshError) -> MeshError:
    if isinstance(failure, Unavailable):
        return Unavailable(f"the generator cannot be reached: {failure.message}", retry_ms=500)
    return failure
