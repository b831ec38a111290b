"""Who answers: what every backend offers, and the one that needs no network."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Protocol

from services.generator.abstention import ABSTENTION, NO_SUPPORT, is_abstention
from services.generator.citations import normalise
from services.generator.extractive import extract
from services.generator.prompt import Prompt
from services.generator.tokens import estimate_tokens

STOP, LENGTH = "stop", "length"
"""Finish reasons: the answer is whole; the token budget cut it off."""


@dataclass(frozen=True, slots=True)
class Delta:
    """The next piece of the answer, as the backend wrote it."""

    text: str


@dataclass(frozen=True, slots=True)
class Answer:
    """The whole answer, sent once and last."""

    text: str
    """Citations in the one form; otherwise the deltas together."""
    cited_numbers: tuple[int, ...]
    """Passage numbers in the prompt, from 1, in order of first appearance. Empty: the answer cites nothing."""
    abstained: bool
    completion_tokens: int
    finish_reason: str


def finished(text: str, passages: int, completion_tokens: int, finish_reason: str) -> Answer:
    """The Answer for a text that a model wrote. An abstention cites nothing; citations are never added."""
    cited = normalise(text.strip(), passages)
    abstained = is_abstention(cited.text)
    return Answer(cited.text, () if abstained else cited.numbers, abstained, completion_tokens, finish_reason)


def abstention(reason: str) -> Answer:
    """The Answer that says there is none."""
    return Answer(ABSTENTION, (), True, estimate_tokens(ABSTENTION), reason)


class Backend(Protocol):
    """Turns a prompt with at least one passage into an answer."""

    @property
    def model(self) -> str:
        """Name of the model, for the reply and the trace."""
        ...

    def answer(self, prompt: Prompt, tokens_max: int) -> AsyncGenerator[Delta | Answer, None]:
        """Deltas, then one Answer. Closing the generator stops the work. Raises MeshErrors."""
        ...

    async def close(self) -> None:
        """Release connections."""
        ...


class ExtractiveBackend:
    """Quotes the best supporting sentences; see extractive.py."""

    model = "extractive"

    async def answer(self, prompt: Prompt, tokens_max: int) -> AsyncGenerator[Delta | Answer, None]:
        """One delta per quotation."""
        found = extract(prompt.question, prompt.evidence, tokens_max)
        if not found.quotes:
            yield Delta(ABSTENTION)
            yield abstention(NO_SUPPORT)
            return
        pieces = [quote.render() for quote in found.quotes]
        pieces[1:] = [f"\n{piece}" for piece in pieces[1:]]
        for piece in pieces:
            yield Delta(piece)
        text = "".join(pieces)
        # Not parsed out of the text: a quoted "[2]" belongs to the document, not to us.
        numbers = tuple(dict.fromkeys(quote.number for quote in found.quotes))
        yield Answer(text, numbers, False, estimate_tokens(text), LENGTH if found.cut else STOP)

    async def close(self) -> None:
        """Nothing is held."""
