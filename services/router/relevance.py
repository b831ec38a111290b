"""Which of the passages found are good enough for a prompt. Pure.

`router.relevance_min` bounds the cosine similarity, the only score that means the same for every question. What was
found by nearness alone must reach it, else a question about nothing in the collection would get a prompt of its nearest
strangers. What was found by words of the question (LEXICAL, and the lexical list of HYBRID) stays whatever its cosine:
names and error codes are what embeddings know least about. Whether it answers the question is the generator's to say.
TWO_STAGE finds by nearness, so there the bound holds for every passage.
"""

from __future__ import annotations

from collections.abc import Sequence

from ostraka.v1 import passage_pb2
from services.router.search_mode import HYBRID, LEXICAL, Mode

_FOUND_BY_WORDS = frozenset({LEXICAL, HYBRID})


def relevant(hits: Sequence[passage_pb2.Hit], mode: Mode.ValueType, dense_min: float) -> list[passage_pb2.Hit]:
    """The hits good enough for a prompt, in their order."""
    return [hit for hit in hits if _good(hit.provenance, mode, dense_min)]


def _good(provenance: passage_pb2.Provenance, mode: Mode.ValueType, dense_min: float) -> bool:
    if mode in _FOUND_BY_WORDS and provenance.lexical_rank:
        return True
    return provenance.dense_rank > 0 and provenance.dense_score >= dense_min
