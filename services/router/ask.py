"""Ask: a question to a streamed, cited answer, under one deadline and in one trace.

The retrieval span is held open until the answer is complete, because only then it is known which passages
were in the prompt and which were cited. Reply and trace are made from the same Provenance objects.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from opentelemetry.trace import Span, SpanKind

from observability import names, spans
from observability.provenance import documents_json
from ostraka.v1 import generator_pb2, passage_pb2, router_pb2
from services.router import budget
from services.router.embedder import Embedder
from services.router.generation import Generation
from services.router.read_request import AskPlan
from services.router.relevance import relevant
from services.router.retrieval import Retrieval, Retrieved, Wanted, retrieval_span
from services.runtime.config import Config
from services.runtime.deadline import Deadline
from services.runtime.errors import Internal

FINISH_ABSTAINED = "abstained"


@dataclass(slots=True)
class _Made:
    """What the generator did."""

    prompt: generator_pb2.PromptInfo
    generated: generator_pb2.Generated


class Asking:
    """The Ask pipeline."""

    def __init__(self, config: Config, embedder: Embedder, retrieval: Retrieval, generation: Generation) -> None:
        self._config = config
        self._embedder, self._retrieval, self._generation = embedder, retrieval, generation

    async def ask(self, plan: AskPlan, answer_id: str, deadline: Deadline) -> AsyncGenerator[router_pb2.AskEvent, None]:
        """Retrieved, then deltas, then the Answer. Closing the iterator stops the generator. Raises MeshError."""
        # The call's own span is current only while its task runs; keep it for the parts that follow.
        server, trace_id = spans.current_span(), spans.current_trace_id()
        collection = plan.reading.collection
        vectors: Sequence[NDArray[np.float32] | None] = [None]
        if plan.ranking.needs_vector:
            vectors = await self._embedder.queries(
                collection, [plan.question], deadline.share(budget.EMBED_SHARE), server
            )
        words = plan.question if plan.ranking.needs_text else ""
        span = retrieval_span(plan.reading, plan.ranking, server)
        provenances: list[passage_pb2.Provenance] = []
        try:
            found = await self._retrieval.search(
                plan.reading,
                Wanted(vectors, [words], plan.ranking, filter=plan.filter),
                model=self._embedder.model_of(collection),
                deadline=deadline.share(budget.ASK_RETRIEVAL_SHARE),
                span=span,
            )
            hits = found.results[0].hits
            provenances = [_copy(hit.provenance) for hit in hits]
            yield router_pb2.AskEvent(
                retrieved=router_pb2.Retrieved(hits=hits, coverage=found.coverage, consistency=plan.reading.level)
            )
            async with aclosing(self._generate(plan, hits, deadline, server)) as events:
                async for event in events:
                    if isinstance(event, _Made):
                        answer = _answer(found, provenances, event, answer_id, trace_id)
                        _describe(server, answer)
                        yield router_pb2.AskEvent(answer=answer)
                    else:
                        yield router_pb2.AskEvent(delta=event)
        except BaseException as error:
            spans.record_error(span, error)
            raise
        finally:
            if span.is_recording():
                span.set_attribute(names.GEN_AI_DOCUMENTS, documents_json(provenances))
            spans.end_span(span)

    async def _generate(
        self, plan: AskPlan, hits: Sequence[passage_pb2.Hit], deadline: Deadline, server: Span
    ) -> AsyncGenerator[str | _Made, None]:
        """Deltas as they come, then what was made. The chat span ends with the stream, however it ends."""
        model = self._config.generator.model
        chat = spans.start_span(
            f"{names.SPAN_CHAT} {model}",
            SpanKind.CLIENT,
            {
                names.GEN_AI_OPERATION: "chat",
                names.GEN_AI_REQUEST_MODEL: model,
                names.OPENINFERENCE_KIND: "LLM",
            },
            server,
        )
        chosen = relevant(hits, plan.ranking.mode, self._config.router.relevance_min)
        passages = [(hit.passage, hit.provenance.score) for hit in chosen]
        prompt = generator_pb2.PromptInfo()
        generated: generator_pb2.Generated | None = None
        try:
            stream = self._generation.stream(plan.question, passages, plan.max_tokens, deadline, chat)
            async with aclosing(stream) as events:
                async for event in events:
                    kind = event.WhichOneof("event")
                    if kind == "prompt":
                        prompt = event.prompt
                    elif kind == "delta":
                        yield event.delta
                    elif kind == "generated":
                        generated = event.generated
            if generated is None:
                raise Internal("the generator ended its stream without an answer")
            _describe_chat(chat, prompt, generated)
        except BaseException as error:
            spans.record_error(chat, error)
            raise
        finally:
            spans.end_span(chat)
        yield _Made(prompt, generated)


def _answer(
    found: Retrieved,
    provenances: Sequence[passage_pb2.Provenance],
    made: _Made,
    answer_id: str,
    trace_id: str,
) -> router_pb2.Answer:
    """The last event; also marks in `provenances` what was in the prompt and what was cited."""
    prompt, generated = made.prompt, made.generated
    numbered = list(prompt.passage_ids)
    cited = [number for number in generated.cited_numbers if 1 <= number <= len(numbered)]
    cited_ids = {numbered[number - 1] for number in cited}
    versions = {provenance.passage_id: provenance.version for provenance in provenances}
    for provenance in provenances:
        provenance.in_prompt = provenance.passage_id in set(numbered)
        provenance.cited = provenance.passage_id in cited_ids
    return router_pb2.Answer(
        answer_id=answer_id,
        text=generated.text,
        citations=[
            router_pb2.Citation(
                number=number, passage_id=numbered[number - 1], version=versions.get(numbered[number - 1])
            )
            for number in cited
        ],
        provenance=provenances,
        abstained=generated.abstained,
        model=prompt.model,
        prompt_tokens=prompt.prompt_tokens,
        completion_tokens=generated.completion_tokens,
        prompt_sha256=prompt.prompt_sha256,
        trace_id=trace_id,
        session_token=found.session_token,
        coverage=found.coverage,
        finish_reason=FINISH_ABSTAINED if generated.abstained else generated.finish_reason,
    )


def _describe(server: Span, answer: router_pb2.Answer) -> None:
    if server.is_recording():
        server.set_attribute(names.ANSWER_ID, answer.answer_id)
        server.set_attribute(names.ABSTAINED, answer.abstained)


def _describe_chat(chat: Span, prompt: generator_pb2.PromptInfo, generated: generator_pb2.Generated) -> None:
    if chat.is_recording():
        chat.set_attributes(
            {
                names.GEN_AI_RESPONSE_MODEL: prompt.model,
                names.CONTEXT_PASSAGE_IDS: list(prompt.passage_ids),
                names.CONTEXT_SHA256: prompt.prompt_sha256.hex(),
                names.GEN_AI_INPUT_TOKENS: prompt.prompt_tokens,
                names.GEN_AI_OUTPUT_TOKENS: generated.completion_tokens,
                names.GEN_AI_FINISH_REASONS: [generated.finish_reason],
                names.TIME_TO_FIRST_TOKEN_US: generated.time_to_first_token_us,
                names.ABSTAINED: generated.abstained,
            }
        )


def _copy(provenance: passage_pb2.Provenance) -> passage_pb2.Provenance:
    copied = passage_pb2.Provenance()
    copied.CopyFrom(provenance)
    return copied
