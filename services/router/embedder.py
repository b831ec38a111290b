"""Texts to vectors through the embed service, with recent queries remembered."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

import grpc
import numpy as np
from numpy.typing import NDArray
from opentelemetry.trace import Span, SpanKind

from observability import metrics, names, spans
from observability.rpc import suppress_client_span
from ostraka.v1 import embed_pb2
from ostraka.v1.embed_pb2_grpc import EmbedServiceStub
from services.router.catalogue import Collection, Model
from services.router.query_cache import QueryCache
from services.router.vectors import F32
from services.runtime.channel import ChannelPool
from services.runtime.config import Config
from services.runtime.deadline import Deadline
from services.runtime.errors import DataLoss, FailedPrecondition, MeshError, Unavailable, from_rpc_error

if TYPE_CHECKING:
    from ostraka.v1.embed_pb2_grpc import EmbedServiceAsyncStub

# Texts per call: two forward passes of the default size, so that one call neither occupies the service for
# long nor leaves its batches half empty.
CHUNK_TEXTS_MAX = 128
CHUNK_BYTES_MAX = 4 * 1024 * 1024
# Calls of one operation under way per embed address: one computing, one waiting.
CHUNKS_INFLIGHT_PER_ADDRESS = 2
DESCRIBE_S = 2.0

F32Rows = list[NDArray[np.float32]]


class Embedder:
    """Every call to the embed service."""

    def __init__(self, config: Config, channels: ChannelPool) -> None:
        self._stubs: tuple[EmbedServiceAsyncStub, ...] = tuple(
            EmbedServiceStub(channel) for channel in channels.channels
        )
        self._turn = 0
        self._texts_max = min(CHUNK_TEXTS_MAX, config.embed.request_texts_max)
        self._cache: QueryCache[NDArray[np.float32]] = QueryCache(config.router.query_cache_entries)
        self.served: Model | None = None
        """The model last seen serving; None until one answered."""

    def model_of(self, collection: Collection) -> Model:
        """The collection's model with its revision, learned from the embed service where the mesh file names none."""
        model, served = collection.model, self.served
        return served if not model.revision and served is not None and served.id == model.id else model

    async def describe(self) -> Model:
        """Ask which model is served. Raises MeshError."""
        try:
            reply = await self._next().DescribeModel(embed_pb2.DescribeModelRequest(), timeout=DESCRIBE_S)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error
        self.served = Model(reply.model.id, reply.model.revision)
        return self.served

    async def queries(
        self, collection: Collection, texts: Sequence[str], deadline: Deadline, parent: Span | None = None
    ) -> F32Rows:
        """Unit vectors, shape (dim,) float32 each, of query texts. Raises MeshError."""
        model = self.model_of(collection)
        found = [self._cache.get(model.id, model.revision, text) for text in texts]
        missing = [index for index, vector in enumerate(found) if vector is None]
        for outcome, count in (("hit", len(texts) - len(missing)), ("miss", len(missing))):
            if count:
                metrics.add(metrics.QUERY_CACHE, count, {"outcome": outcome})
        attributes: dict[str, spans.AttributeValue] = {
            names.GEN_AI_OPERATION: "embeddings",
            names.GEN_AI_REQUEST_MODEL: collection.model.id,
            names.OPENINFERENCE_KIND: "EMBEDDING",
            names.TEXTS: len(texts),
            names.CACHE_HIT: not missing,
        }
        with spans.span(f"{names.SPAN_EMBEDDINGS} {collection.model.id}", SpanKind.CLIENT, attributes, parent):
            if missing:
                fresh, _ = await self._embed(
                    collection, [texts[index] for index in missing], embed_pb2.EMBED_KIND_QUERY, deadline
                )
                model = self.model_of(collection)
                for index, vector in zip(missing, fresh, strict=True):
                    found[index] = vector
                    self._cache.put(model.id, model.revision, texts[index], vector)
        return [vector for vector in found if vector is not None]

    async def passages(
        self, collection: Collection, texts: Sequence[str], deadline: Deadline
    ) -> tuple[F32Rows, list[bool]]:
        """Unit vectors of passage texts, and which texts the model saw only the beginning of. Raises MeshError."""
        attributes: dict[str, spans.AttributeValue] = {
            names.GEN_AI_OPERATION: "embeddings",
            names.GEN_AI_REQUEST_MODEL: collection.model.id,
            names.OPENINFERENCE_KIND: "EMBEDDING",
            names.TEXTS: len(texts),
        }
        with spans.span(f"{names.SPAN_EMBEDDINGS} {collection.model.id}", SpanKind.CLIENT, attributes):
            return await self._embed(collection, texts, embed_pb2.EMBED_KIND_PASSAGE, deadline)

    async def _embed(
        self, collection: Collection, texts: Sequence[str], kind: embed_pb2.EmbedKind.ValueType, deadline: Deadline
    ) -> tuple[F32Rows, list[bool]]:
        if self.served is not None:
            check_served(self.served, collection)
        slots = asyncio.Semaphore(CHUNKS_INFLIGHT_PER_ADDRESS * len(self._stubs))

        async def one(chunk: Sequence[str]) -> tuple[NDArray[np.float32], Sequence[bool]]:
            async with slots:
                return await self._chunk(collection, chunk, kind, deadline)

        chunks = chunked(texts, self._texts_max, CHUNK_BYTES_MAX)
        if len(chunks) == 1:
            replies = [await self._chunk(collection, chunks[0], kind, deadline)]
        else:
            try:
                async with asyncio.TaskGroup() as group:
                    tasks = [group.create_task(one(chunk)) for chunk in chunks]
            except BaseExceptionGroup as failures:
                raise failures.exceptions[0] from None
            replies = [task.result() for task in tasks]
        return [row for rows, _ in replies for row in rows], [flag for _, flags in replies for flag in flags]

    async def _chunk(
        self, collection: Collection, texts: Sequence[str], kind: embed_pb2.EmbedKind.ValueType, deadline: Deadline
    ) -> tuple[NDArray[np.float32], Sequence[bool]]:
        request = embed_pb2.EmbedRequest(texts=texts, kind=kind)
        reply = await self._call(request, deadline)
        self.served = Model(reply.model.id, reply.model.revision)
        check_served(self.served, collection)
        if reply.dim != collection.dim:
            raise FailedPrecondition(
                f"the embed service makes vectors of dimension {reply.dim}; collection {collection.name!r} has "
                f"{collection.dim}",
                "collection",
            )
        rows = np.frombuffer(reply.vectors, dtype=F32)
        if rows.size != len(texts) * reply.dim or not np.isfinite(rows).all():
            raise DataLoss(f"the embed service answered {rows.size} values for {len(texts)} texts, or NaN among them")
        return rows.reshape(len(texts), reply.dim), list(reply.truncated)

    async def _call(self, request: embed_pb2.EmbedRequest, deadline: Deadline) -> embed_pb2.EmbedResponse:
        """Embedding changes nothing, so an address that cannot be reached is followed by the next one."""
        failure: MeshError = Unavailable("no embed service")
        for _ in self._stubs:
            deadline.check("embedding")
            try:
                with suppress_client_span():
                    call = self._next().Embed(request, timeout=deadline.remaining_s())
                return await call
            except grpc.aio.AioRpcError as error:
                failure = from_rpc_error(error)
                if not isinstance(failure, Unavailable):
                    raise failure from error
        raise Unavailable(f"the embed service cannot be reached: {failure.message}", retry_ms=500, definite=True)

    def _next(self) -> EmbedServiceAsyncStub:
        self._turn = (self._turn + 1) % len(self._stubs)
        return self._stubs[self._turn]


def check_served(served: Model, collection: Collection) -> None:
    """Raise FailedPrecondition when the embed service's model is not the collection's."""
    wanted = collection.model
    if served.id != wanted.id:
        raise FailedPrecondition(
            f"collection {collection.name!r} holds vectors of {wanted.id!r} but the embed service serves "
            f"{served.id!r}; bring your own vectors or serve that model",
            "collection",
        )
    if wanted.revision and served.revision != wanted.revision:
        raise FailedPrecondition(
            f"collection {collection.name!r} holds vectors of {wanted.id!r} revision {wanted.revision!r} but the embed "
            f"service serves revision {served.revision!r}",
            "collection",
        )


def chunked(texts: Sequence[str], texts_max: int, bytes_max: int) -> list[list[str]]:
    """Texts in order, in chunks bounded in number and in bytes of UTF-8."""
    chunks: list[list[str]] = []
    size = 0
    for text in texts:
        length = len(text.encode())
        if not chunks or len(chunks[-1]) == texts_max or size + length > bytes_max:
            chunks.append([])
            size = 0
        chunks[-1].append(text)
        size += length
    return chunks
