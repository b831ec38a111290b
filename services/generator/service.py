"""The GeneratorService of the contract: checks the request, builds the prompt, streams the backend's answer."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

import grpc

from observability import names, spans
from ostraka.v1 import generator_pb2, generator_pb2_grpc
from services.generator.abstention import ABSTENTION, NO_PASSAGES
from services.generator.backend import Answer, Backend, Delta, abstention
from services.generator.prompt import Evidence, Prompt, QuestionTooLongError, build
from services.runtime.admission import Admission
from services.runtime.clock import Clock
from services.runtime.config import ConfigError, GeneratorConfig
from services.runtime.deadline import current_deadline
from services.runtime.errors import InvalidArgument

PASSAGES_MAX = 1_000
"""As many as a search may return."""
QUESTION_BYTES_MAX = 65_536
"""Checked before counting tokens; the token budget is far below."""
ANSWER_TOKENS_MIN = 16
"""A smaller budget cannot hold a citation."""


class GeneratorServicer(generator_pb2_grpc.GeneratorServiceServicer):
    """Passages and a question to a cited answer."""

    def __init__(self, config: GeneratorConfig, backend: Backend, clock: Clock) -> None:
        self._config = config
        self._backend = backend
        self._clock = clock
        self._admission = Admission(config.calls_inflight_max)

    async def Generate(
        self,
        request: generator_pb2.GenerateRequest,
        _context: grpc.aio.ServicerContext[generator_pb2.GenerateRequest, generator_pb2.GenerateEvent],
    ) -> AsyncIterator[generator_pb2.GenerateEvent]:
        """PromptInfo, deltas, Generated."""
        started_s = self._clock.monotonic_s()
        evidence = check_request(request)
        tokens_max = answer_tokens(request.max_tokens, self._config)
        with self._admission.admit():
            current_deadline().check("generating")
            try:
                prompt = build(request.question, evidence, self._config.context_tokens_max - tokens_max)
            except QuestionTooLongError as error:
                raise InvalidArgument(str(error), "question") from None
            yield generator_pb2.GenerateEvent(prompt=self._prompt_info(prompt))
            first_us: int | None = None
            async with aclosing(self._answer(prompt, tokens_max)) as pieces:
                async for piece in pieces:
                    if first_us is None:
                        first_us = round((self._clock.monotonic_s() - started_s) * 1e6)
                    if isinstance(piece, Delta):
                        yield generator_pb2.GenerateEvent(delta=piece.text)
                    else:
                        yield generator_pb2.GenerateEvent(generated=_generated(piece, first_us))

    def _answer(self, prompt: Prompt, tokens_max: int) -> AsyncGenerator[Delta | Answer, None]:
        return self._backend.answer(prompt, tokens_max) if prompt.evidence else _nothing_to_go_by()

    def _prompt_info(self, prompt: Prompt) -> generator_pb2.PromptInfo:
        ids = [passage.passage_id for passage in prompt.evidence]
        digest = prompt.sha256
        spans.current_span().set_attributes(
            {
                names.GEN_AI_REQUEST_MODEL: self._backend.model,
                names.GEN_AI_INPUT_TOKENS: prompt.tokens,
                names.CONTEXT_PASSAGE_IDS: ids,
                names.CONTEXT_SHA256: digest.hex(),
            }
        )
        return generator_pb2.PromptInfo(
            model=self._backend.model, passage_ids=ids, prompt_sha256=digest, prompt_tokens=prompt.tokens
        )


def check_request(request: generator_pb2.GenerateRequest) -> list[Evidence]:
    """The passages of a request, in order. Raises InvalidArgument naming the field."""
    if not request.question.strip():
        raise InvalidArgument("question is empty", "question")
    size = len(request.question.encode())
    if size > QUESTION_BYTES_MAX:
        raise InvalidArgument(f"question has {size} bytes; at most {QUESTION_BYTES_MAX} are taken", "question")
    if len(request.passages) > PASSAGES_MAX:
        raise InvalidArgument(
            f"passages holds {len(request.passages)} passages; at most {PASSAGES_MAX} are taken", "passages"
        )
    evidence: list[Evidence] = []
    seen: set[str] = set()
    for index, row in enumerate(request.passages):
        passage = row.passage
        if not passage.passage_id or passage.passage_id in seen:
            what = "is given twice" if passage.passage_id else "is empty"
            field = f"passages[{index}].passage.passage_id"
            raise InvalidArgument(f"{field} {what}", field)
        seen.add(passage.passage_id)
        if passage.text.strip():
            evidence.append(Evidence(passage.passage_id, passage.title, passage.text))
    return evidence


def answer_tokens(wanted: int, config: GeneratorConfig) -> int:
    """The answer's budget: what was asked for, at most the configured maximum. Raises InvalidArgument."""
    if wanted and wanted < ANSWER_TOKENS_MIN:
        raise InvalidArgument(f"max_tokens must be 0 or at least {ANSWER_TOKENS_MIN}, not {wanted}", "max_tokens")
    return min(wanted or config.answer_tokens_max, config.answer_tokens_max)


def check_budget(config: GeneratorConfig) -> None:
    """Raise ConfigError when the rules alone do not fit beside the answer."""
    try:
        build("?", (), config.context_tokens_max - config.answer_tokens_max)
    except QuestionTooLongError as error:
        raise ConfigError(
            f"generator.context_tokens_max {config.context_tokens_max} minus generator.answer_tokens_max "
            f"{config.answer_tokens_max} leaves no room: {error}"
        ) from None


async def _nothing_to_go_by() -> AsyncGenerator[Delta | Answer, None]:
    """Without passages no model is asked: whatever it said could not be checked."""
    yield Delta(ABSTENTION)
    yield abstention(NO_PASSAGES)


def _generated(answer: Answer, first_us: int) -> generator_pb2.Generated:
    spans.current_span().set_attributes(
        {
            names.GEN_AI_OUTPUT_TOKENS: answer.completion_tokens,
            names.GEN_AI_FINISH_REASONS: [answer.finish_reason],
            names.TIME_TO_FIRST_TOKEN_US: first_us,
            names.ABSTAINED: answer.abstained,
        }
    )
    return generator_pb2.Generated(
        text=answer.text,
        cited_numbers=answer.cited_numbers,
        abstained=answer.abstained,
        completion_tokens=answer.completion_tokens,
        finish_reason=answer.finish_reason,
        time_to_first_token_us=first_us,
    )
