"""What there is to ask about: questions taken from the documents of the collection itself.

A mesh cannot list its documents, but it can be searched: a few random directions, each with many hits, bring up a
spread of passages, and each passage yields a question (its title and first words) or, in a collection whose
embedding model is not served, its own vector slightly turned.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from loadtest.questions import WRITER_PREFIX, Question
from ostraka.client import Client
from ostraka.errors import FailedPrecondition, InvalidRequest
from ostraka.results import Passage

QUESTIONS_MAX = 500
PROBES = 16
QUESTION_WORDS_MAX = 16
NOISE_SHARE = 0.2
"""Length of the random part added to a stored unit vector, so that a query is near a row but is not one."""
GET_IDS_MAX = 200


async def discover(client: Client, *, dim: int, kind: str, seed: int) -> tuple[Question, ...]:
    """Up to `QUESTIONS_MAX` questions about what the client's collection holds; none when it is empty.

    kind: "text", "vector", or "auto", which prefers text and falls back when the mesh cannot embed for this
    collection. Raises OstrakaError when the mesh does not answer.
    """
    rng = np.random.default_rng(seed)
    probes = rng.normal(size=(PROBES, dim)).astype(np.float32)
    k = 2 * QUESTIONS_MAX // PROBES
    found: dict[str, Passage] = {}
    for result in await client.search_batch(list(probes), k=k, exact=True):
        found.update((hit.passage.passage_id, hit.passage) for hit in result)
    passages = [passage for key, passage in sorted(found.items()) if not key.startswith(WRITER_PREFIX)]
    texts = sorted({text for text in map(question_text, passages) if text})
    chosen = [texts[i] for i in rng.permutation(len(texts))[:QUESTIONS_MAX]]
    if kind != "vector" and chosen and (kind == "text" or await _text_is_answered(client, chosen[0])):
        return tuple(Question(text=text) for text in chosen)
    if kind == "text":
        return ()
    return await _vectors_near(client, [passage.passage_id for passage in passages], rng)


def question_text(passage: Passage) -> str:
    """A question about a passage: its title and the first words of its text."""
    words = f"{passage.title} {passage.text}".split()
    return " ".join(words[:QUESTION_WORDS_MAX])


async def _text_is_answered(client: Client, text: str) -> bool:
    try:
        await client.search(text, k=1)
    except (FailedPrecondition, InvalidRequest):
        return False
    return True


async def _vectors_near(client: Client, passage_ids: Sequence[str], rng: np.random.Generator) -> tuple[Question, ...]:
    chosen = [passage_ids[i] for i in rng.permutation(len(passage_ids))[:QUESTIONS_MAX]]
    questions: list[Question] = []
    for start in range(0, len(chosen), GET_IDS_MAX):
        reply = await client.get(passage_ids=chosen[start : start + GET_IDS_MAX], include_vectors=True)
        stored = [passage.vector for passage in reply.passages if passage.vector is not None]
        questions += [Question(vector=_turned(vector, rng).tobytes()) for vector in stored]
    return tuple(questions)


def _turned(vector: npt.NDArray[np.float32], rng: np.random.Generator) -> npt.NDArray[np.float32]:
    noise = rng.normal(size=vector.shape)
    turned = vector + NOISE_SHARE * noise / np.linalg.norm(noise)
    unit: npt.NDArray[np.float32] = (turned / np.linalg.norm(turned)).astype("<f4")
    return unit
