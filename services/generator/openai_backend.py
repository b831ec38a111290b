"""The backend that asks an OpenAI-compatible endpoint, streaming. Wire format: OpenAI's chat completions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any, cast

import openai
from openai.types.chat import ChatCompletionChunk, ChatCompletionMessageParam
from opentelemetry.trace import Span

from observability import names, spans
from services.generator.backend import LENGTH, Answer, Delta, finished
from services.generator.prompt import Prompt
from services.generator.tokens import estimate_tokens
from services.generator.upstream import RETRY_MS_DEFAULT, Endpoint
from services.runtime.clock import Clock
from services.runtime.config import GeneratorConfig
from services.runtime.errors import MeshError, Unavailable

_NO_KEY = "none"
"""Local servers want a header but no key; the SDK wants a value."""
_ANSWER_CHARS_MAX = 262_144
"""An endpoint that ignores max_tokens is cut off here."""


@dataclass(slots=True)
class _Received:
    """What a stream has brought so far."""

    text: str = ""
    finish_reason: str = ""
    completion_tokens: int | None = None


class OpenAIBackend:
    """Owns the HTTP client. Never retries: the router knows the deadline and the caller's wishes."""

    def __init__(self, config: GeneratorConfig, key: str | None, clock: Clock) -> None:
        """Raises ConfigError for a base_url that is not one."""
        self._config = config
        self._clock = clock
        self._endpoint = Endpoint.of(config.base_url, config.api_key_env, key)
        self._client = openai.AsyncOpenAI(
            api_key=key or _NO_KEY, base_url=config.base_url, timeout=config.request_timeout_s, max_retries=0
        )

    @property
    def model(self) -> str:
        return self._config.model

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def answer(self, prompt: Prompt, tokens_max: int) -> AsyncGenerator[Delta | Answer, None]:
        """See Backend. Closing or cancelling closes the HTTP stream, which tells the endpoint to stop."""
        held = spans.start_span(names.SPAN_LLM, attributes=self._attributes())
        received = _Received()
        stream: openai.AsyncStream[ChatCompletionChunk] | None = None
        expires_s = self._clock.monotonic_s() + self._config.request_timeout_s
        try:
            async with self._until(expires_s):
                stream = await self._open(prompt, tokens_max)
            while True:
                # Timed piece by piece: a timeout around a `yield` would strike in the consumer's code.
                async with self._until(expires_s):
                    chunk = await anext(stream, None)
                if chunk is None:
                    break
                delta = _take(chunk, received)
                if delta:
                    yield Delta(delta)
                if len(received.text) > _ANSWER_CHARS_MAX:
                    received.finish_reason = LENGTH
                    break
            yield self._finish(received, len(prompt.evidence), held)
        except MeshError as error:
            spans.record_error(held, error)
            raise
        except (openai.OpenAIError, ValueError, TypeError, AttributeError) as error:
            # The SDK builds its objects without checking, so a malformed reply shows as any of the last three.
            found = self._endpoint.error(error)
            spans.record_error(held, found)
            raise found from error
        except BaseException as error:
            spans.record_error(held, error)
            raise
        finally:
            spans.end_span(held)
            if stream is not None:
                await stream.close()

    async def _open(self, prompt: Prompt, tokens_max: int) -> openai.AsyncStream[ChatCompletionChunk]:
        messages = [{"role": message.role, "content": message.content} for message in prompt.messages]
        return await self._client.chat.completions.create(
            model=self._config.model,
            messages=cast(list[ChatCompletionMessageParam], messages),
            max_tokens=tokens_max,
            temperature=self._config.temperature,
            stream=True,
            stream_options={"include_usage": True},
        )

    def _finish(self, received: _Received, passages: int, held: Span) -> Answer:
        if not received.finish_reason:
            raise self._endpoint.unreadable("the stream ended before the answer did")
        if not received.text.strip():
            raise self._endpoint.unreadable(f"the answer is empty (finish reason {received.finish_reason!r})")
        tokens = received.completion_tokens
        if tokens is None:
            tokens = estimate_tokens(received.text)
        held.set_attributes({names.GEN_AI_OUTPUT_TOKENS: tokens, names.GEN_AI_FINISH_REASONS: [received.finish_reason]})
        return finished(received.text, passages, tokens, received.finish_reason)

    def _until(self, expires_s: float) -> _Patience:
        return _Patience(self._endpoint, max(expires_s - self._clock.monotonic_s(), 0.0))

    def _attributes(self) -> dict[str, Any]:
        return {
            names.GEN_AI_OPERATION: "chat",
            names.GEN_AI_PROVIDER: "openai",
            names.GEN_AI_REQUEST_MODEL: self._config.model,
            names.SERVER_ADDRESS: self._endpoint.address,
            names.OPENINFERENCE_KIND: "LLM",
        }


class _Patience:
    """`asyncio.timeout` whose expiry is the endpoint's fault; a timeout from outside stays what it is."""

    def __init__(self, endpoint: Endpoint, seconds: float) -> None:
        self._endpoint = endpoint
        self._timeout = asyncio.timeout(seconds)

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()

    async def __aexit__(self, *raised: Any) -> None:
        try:
            await self._timeout.__aexit__(*raised)
        except TimeoutError as error:
            raise Unavailable(
                f"the LLM at {self._endpoint.address} did not finish within generator.request_timeout_s",
                retry_ms=RETRY_MS_DEFAULT,
            ) from error


def _take(chunk: ChatCompletionChunk, received: _Received) -> str:
    """Add one chunk to what was received and return its text; "" for chunks without."""
    if chunk.usage is not None:
        received.completion_tokens = int(chunk.usage.completion_tokens)
    if not chunk.choices:
        return ""
    choice = chunk.choices[0]
    if choice.finish_reason:
        received.finish_reason = str(choice.finish_reason)
    text = choice.delta.content or "" if choice.delta else ""
    if not isinstance(text, str):
        raise TypeError("delta.content is not a string")
    received.text += text
    return text
