"""Bulk ingest through the router, several batches at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from benchmarks.datasets import Document
from ostraka.client import Client
from ostraka.documents import NewDocument, NewPassage

BATCH_DOCUMENTS = 128
BATCHES_INFLIGHT = 4
BATCH_TIMEOUT_S = 120.0


def as_new(document: Document, vector: npt.NDArray[np.float32] | None = None) -> NewDocument:
    """A document of one passage, with or without its vector (dim,)."""
    passage = NewPassage(text=document.text, title=document.title, vector=vector)
    return NewDocument(document_id=document.document_id, passages=[passage], source=document.source)


async def ingest(
    client: Client,
    documents: Sequence[Document],
    vectors: npt.NDArray[np.float16] | None = None,
    *,
    on_progress: Callable[[int], object] = lambda _: None,
) -> None:
    """Store all documents in the client's collection; `vectors` (documents, dim), else the mesh embeds the texts.

    `on_progress` hears how many documents are acknowledged. Raises OstrakaError unless every one is.
    """
    starts = iter(range(0, len(documents), BATCH_DOCUMENTS))
    stored = 0

    async def worker() -> None:
        nonlocal stored
        for start in starts:
            part = documents[start : start + BATCH_DOCUMENTS]
            rows = None if vectors is None else vectors[start : start + BATCH_DOCUMENTS].astype(np.float32)
            batch = [as_new(document, None if rows is None else rows[i]) for i, document in enumerate(part)]
            await client.upsert(batch, timeout_s=BATCH_TIMEOUT_S)
            stored += len(part)
            on_progress(stored)

    async with asyncio.TaskGroup() as group:
        for _ in range(BATCHES_INFLIGHT):
            group.create_task(worker())
