"""From files to acknowledged documents, with a bounded number of Upserts in flight.

Documents are grouped into batches of some dozens of passages, so that embedding and group commit have something
to work on, and each batch is one Upsert. The client repeats uncertain documents with their version; what still is
not acknowledged is reported and left out of the checkpoint, so that the next run sends it again.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from ostraka.documents import NewDocument, NewPassage
from ostraka.errors import OstrakaError, RequestError
from ostraka.ingest.checkpoint import Checkpoint, CheckpointError
from ostraka.ingest.chunker import ChunkLimits
from ostraka.ingest.sources import Skip, SourceDocument, SourceFile, find_files, read_documents
from ostraka.results import Outcome, WriteLevel, WriteResult


class Upserter(Protocol):
    """What the pipeline needs of a client."""

    async def upsert(
        self,
        documents: Iterable[NewDocument],
        *,
        collection: str | None = ...,
        level: WriteLevel = ...,
        timeout_s: float | None = ...,
        check: bool = ...,
    ) -> WriteResult: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class IngestLimits:
    """How much at once."""

    passages_batch: int = 48
    """A batch is sent when it holds this many passages; a longer document goes alone."""
    documents_batch: int = 128
    batch_bytes_max: int = 2 * 1024 * 1024
    """Text of a batch in UTF-8; a longer document goes alone."""
    upserts_inflight: int = 3
    upsert_timeout_s: float = 120.0
    chunks: ChunkLimits = field(default_factory=ChunkLimits)
    level: WriteLevel = WriteLevel.QUORUM


@dataclass(slots=True)
class IngestReport:
    """What a run did."""

    documents: int = 0
    """Acknowledged."""
    passages: int = 0
    unchanged: int = 0
    """Acknowledged by an earlier run, with this very content."""
    truncated_passages: int = 0
    """The embedding model saw only their beginning."""
    skipped: list[Skip] = field(default_factory=list)
    failed: list[Skip] = field(default_factory=list)
    """Not acknowledged; a further run sends them again."""

    @property
    def ok(self) -> bool:
        return not self.failed


ProgressFn = Callable[[IngestReport, int], None]
"""Called with the report so far and the bytes of the source just dealt with."""


async def ingest(
    client: Upserter,
    arguments: Sequence[Path],
    *,
    collection: str,
    checkpoint: Checkpoint,
    limits: IngestLimits | None = None,
    on_progress: ProgressFn | None = None,
    force: bool = False,
) -> IngestReport:
    """Send every document under `arguments` that is new or changed; with `force`, all. Raises CheckpointError."""
    run = _Run(client, collection, checkpoint, limits or IngestLimits(), on_progress or (lambda _report, _bytes: None))
    try:
        async with asyncio.TaskGroup() as group:
            async for batch in run.batches(arguments, force=force):
                await run.room.acquire()
                group.create_task(run.send(batch))
    except ExceptionGroup as several:
        # Each Upsert in flight meets the same full disk; one report of it is enough.
        for error in several.exceptions:
            if isinstance(error, CheckpointError):
                raise error from None
        raise
    return run.report


class _Run:
    """One run's state."""

    def __init__(
        self, client: Upserter, collection: str, checkpoint: Checkpoint, limits: IngestLimits, on_progress: ProgressFn
    ) -> None:
        self.report = IngestReport()
        self.room = asyncio.Semaphore(limits.upserts_inflight)
        self._client = client
        self._collection = collection
        self._checkpoint = checkpoint
        self._limits = limits
        self._on_progress = on_progress

    async def batches(self, arguments: Sequence[Path], *, force: bool) -> AsyncIterator[list[SourceDocument]]:
        """Documents to send, grouped."""
        batch: list[SourceDocument] = []
        passages = size = 0
        seen: set[str] = set()
        async for document in self._documents(arguments):
            if document.document_id in seen:
                self._skip(Skip(document.source, f"another document has the id {document.document_id!r}"))
                continue
            seen.add(document.document_id)
            if not force and self._checkpoint.holds(document.document_id, document.sha256):
                self.report.unchanged += 1
                self._on_progress(self.report, document.size_bytes)
                continue
            text_bytes = sum(len(chunk.text.encode("utf-8", "surrogatepass")) for chunk in document.chunks)
            over = (
                passages + len(document.chunks) > self._limits.passages_batch
                or size + text_bytes > self._limits.batch_bytes_max
                or len(batch) == self._limits.documents_batch
            )
            if batch and over:
                yield batch
                batch, passages, size = [], 0, 0
            batch.append(document)
            passages += len(document.chunks)
            size += text_bytes
        if batch:
            yield batch

    async def _documents(self, arguments: Sequence[Path]) -> AsyncIterator[SourceDocument]:
        """Documents as they are read, one file at a time, off the event loop."""
        for item in await asyncio.to_thread(list, find_files(arguments)):
            if isinstance(item, Skip):
                self._skip(item)
                continue
            documents = read_documents(item, self._limits.chunks)
            while found := await asyncio.to_thread(_some, documents):
                for document in found:
                    if isinstance(document, Skip):
                        self._skip(document)
                    else:
                        yield document

    async def send(self, batch: Sequence[SourceDocument]) -> None:
        """A batch, and what became of it; one that is refused as a whole is sent again document by document."""
        try:
            error = await self._send(batch)
            if isinstance(error, RequestError) and len(batch) > 1:
                for document in batch:
                    self._fail([document], await self._send([document]))
            else:
                self._fail(batch, error)
        finally:
            self.room.release()
            self._on_progress(self.report, sum(document.size_bytes for document in batch))

    async def _send(self, batch: Sequence[SourceDocument]) -> OstrakaError | None:
        """One Upsert; the error when no outcome is known."""
        try:
            result = await self._client.upsert(
                [_new_document(document) for document in batch],
                collection=self._collection,
                level=self._limits.level,
                timeout_s=self._limits.upsert_timeout_s,
                check=False,
            )
        except OstrakaError as error:
            return error
        self._settle(batch, result)
        return None

    def _fail(self, batch: Sequence[SourceDocument], error: OstrakaError | None) -> None:
        if error is not None:
            reason = f"{type(error).__name__}: {error}"
            self.report.failed += [Skip(document.document_id, reason) for document in batch]

    def _settle(self, batch: Sequence[SourceDocument], result: WriteResult) -> None:
        for document, written in zip(batch, result.documents, strict=True):
            if written.outcome is Outcome.ACKNOWLEDGED:
                self._checkpoint.add(document.document_id, document.sha256)
                self.report.documents += 1
                self.report.passages += len(document.chunks)
                self.report.truncated_passages += len(written.truncated_ordinals)
            else:
                self.report.failed.append(Skip(document.document_id, f"{written.outcome.name}: {written.reason}"))

    def _skip(self, skip: Skip) -> None:
        self.report.skipped.append(skip)
        self._on_progress(self.report, 0)


def total_bytes(arguments: Sequence[Path]) -> int:
    """Size of everything that will be read, for a progress bar."""
    return sum(item.size_bytes for item in find_files(arguments) if isinstance(item, SourceFile))


def _some(documents: Iterable[SourceDocument | Skip], most: int = 64) -> list[SourceDocument | Skip]:
    """The next few of an iterator; empty at its end."""
    found = []
    for document in documents:
        found.append(document)
        if len(found) == most:
            break
    return found


def _new_document(document: SourceDocument) -> NewDocument:
    return NewDocument(
        document_id=document.document_id,
        source=document.source,
        passages=[
            NewPassage(
                text=chunk.text,
                title=chunk.title,
                char_start=chunk.start,
                char_end=chunk.end,
                metadata=chunk.metadata,
                vector=chunk.vector,
            )
            for chunk in document.chunks
        ],
        metadata=document.metadata,
    )
