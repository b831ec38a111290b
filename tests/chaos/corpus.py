"""What is written and searched for: passages whose rank in any search can be computed.

A passage's text names one of VECTORS vectors, so the mesh embeds nothing, and its cosine with each query stands in a
table made with the shard's own arithmetic: equal rows give equal bits everywhere.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from services.router.vectors import half_rows, unit
from services.shard.scoring import scores
from tests.simulation.checker import Key

DIM = 16
VECTORS = 200
QUERIES = 40


class Corpus:
    """The same for the same seed."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.vectors: NDArray[np.float32] = rng.normal(size=(VECTORS, DIM)).astype(np.float32)
        self.queries: NDArray[np.float32] = rng.normal(size=(QUERIES, DIM)).astype(np.float32)
        stored = np.frombuffer(b"".join(half_rows([_unit(row) for row in self.vectors])), dtype="<f2")
        table = [scores(stored.reshape(VECTORS, DIM), _unit(query)) for query in self.queries]
        self._scores: list[list[float]] = [row.tolist() for row in table]

    def score(self, query: int, content: bytes) -> float:
        """Cosine of a query and a passage, to the last bit of its float32."""
        return self._scores[query][vector_of(content)]

    def rank(self, query: int, document_id: str, ordinal: int, content: bytes) -> Key:
        """The order in which a search returns passages; smaller is better."""
        return (-self._scores[query][vector_of(content)], document_id, ordinal)


def text_of(name: str, vector: int) -> str:
    """A passage's text; `name` makes it unlike every other."""
    return f"{name} {vector:03d}"


def vector_of(content: bytes) -> int:
    """Which vector a passage has, by its text in UTF-8."""
    return int(content[-3:])


def _unit(row: NDArray[np.float32]) -> NDArray[np.float32]:
    found = unit(row.astype("<f4").tobytes())
    assert not isinstance(found, str), found
    return found
