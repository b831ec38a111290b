"""An Upsert's documents made ready to be written: vectors where the caller brought none, rows as they are stored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.quorum.clock import Version
from services.router import budget
from services.router.embedder import Embedder
from services.router.packing import Document, Row
from services.router.vectors import half_rows
from services.router.write_request import UpsertPlan
from services.router.writing import Write
from services.runtime.deadline import Deadline


@dataclass(frozen=True, slots=True)
class Prepared:
    """One document, and which of its passages the embedding model saw only the beginning of."""

    write: Write
    truncated: Sequence[int]


class Ingest:
    """Prepares writes."""

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder

    async def prepare(self, plan: UpsertPlan, deadline: Deadline) -> list[Prepared]:
        """Documents in the order of the request. Nothing was written if this raises MeshError."""
        passages = [passage for document in plan.documents for passage in document.passages]
        texts = [passage.embedded_text for passage in passages if passage.vector is None]
        vectors: list[NDArray[np.float32]] = []
        flags: list[bool] = []
        if texts:
            share = deadline.share(budget.EMBED_PASSAGES_SHARE)
            vectors, flags = await self._embedder.passages(plan.collection, texts, share)
        made = iter(zip(vectors, flags, strict=True))
        rows: list[NDArray[np.float32]] = []
        for passage in passages:
            if passage.vector is not None:
                rows.append(passage.vector)
            else:
                vector, passage.passage.truncated = next(made)
                rows.append(vector)
        halves = iter(half_rows(rows))
        prepared = []
        for document in plan.documents:
            stored = tuple(
                Row(ordinal, next(halves), passage.passage.SerializeToString())
                for ordinal, passage in enumerate(document.passages)
            )
            truncated = [ordinal for ordinal, passage in enumerate(document.passages) if passage.passage.truncated]
            retry = Version(*document.retry_hlc_source) if document.retry_hlc_source is not None else None
            prepared.append(Prepared(Write(Document(document.document_id, stored), retry, document.key), truncated))
        return prepared
