"""The events of an answer as it arrives: what was retrieved, text, and at last the whole with its citations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from ostraka.results import Consistency, Hit, Provenance, ShardCoverage, Version
from ostraka.v1 import router_pb2 as router_pb


@dataclass(frozen=True, slots=True)
class Retrieved:
    """First event: the passages found; which of them are cited is not known yet."""

    hits: tuple[Hit, ...]
    coverage: tuple[ShardCoverage, ...]
    consistency: Consistency


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of the answer's text."""

    text: str


@dataclass(frozen=True, slots=True)
class Citation:
    """`[number]` in the answer stands for this passage."""

    number: int
    passage_id: str
    version: Version


@dataclass(frozen=True, slots=True)
class Answer:
    """Last event: the whole answer, its citations and the provenance of every passage."""

    answer_id: str
    text: str
    citations: tuple[Citation, ...]
    provenance: tuple[Provenance, ...]
    abstained: bool
    model: str
    prompt_tokens: int
    completion_tokens: int
    prompt_sha256: bytes
    trace_id: str
    coverage: tuple[ShardCoverage, ...]
    finish_reason: str

    @property
    def complete(self) -> bool:
        """Every shard took part at the level asked for."""
        return all(shard.complete for shard in self.coverage)


AskEvent: TypeAlias = Retrieved | Delta | Answer


def event_from_proto(event: router_pb.AskEvent) -> AskEvent | None:
    """The typed event; None for a kind that this client does not know."""
    kind = event.WhichOneof("event")
    if kind == "delta":
        return Delta(event.delta)
    if kind == "retrieved":
        return Retrieved(
            hits=tuple(Hit.from_proto(hit) for hit in event.retrieved.hits),
            coverage=tuple(ShardCoverage.from_proto(shard) for shard in event.retrieved.coverage),
            consistency=Consistency.from_proto(event.retrieved.consistency),
        )
    return _answer(event.answer) if kind == "answer" else None


def _answer(a: router_pb.Answer) -> Answer:
    return Answer(
        answer_id=a.answer_id,
        text=a.text,
        citations=tuple(Citation(c.number, c.passage_id, Version.from_proto(c.version)) for c in a.citations),
        provenance=tuple(Provenance.from_proto(p) for p in a.provenance),
        abstained=a.abstained,
        model=a.model,
        prompt_tokens=a.prompt_tokens,
        completion_tokens=a.completion_tokens,
        prompt_sha256=a.prompt_sha256,
        trace_id=a.trace_id,
        coverage=tuple(ShardCoverage.from_proto(shard) for shard in a.coverage),
        finish_reason=a.finish_reason,
    )
