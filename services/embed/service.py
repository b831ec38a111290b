"""The EmbedService of the contract: checks the request, asks the batcher, fills the reply."""

from __future__ import annotations

from collections.abc import Sequence

import grpc
import numpy as np

from observability import names, spans
from ostraka.v1 import embed_pb2, embed_pb2_grpc, passage_pb2
from services.embed.batcher import Batcher, Embedding
from services.embed.batching import Lane
from services.embed.encoder import Encoder
from services.embed.model import ModelFiles
from services.runtime.config import EmbedConfig
from services.runtime.deadline import current_deadline
from services.runtime.errors import FailedPrecondition, InvalidArgument

_LANES = {
    embed_pb2.EMBED_KIND_UNSPECIFIED: Lane.QUERY,
    embed_pb2.EMBED_KIND_QUERY: Lane.QUERY,
    embed_pb2.EMBED_KIND_PASSAGE: Lane.PASSAGE,
}


class EmbedServicer(embed_pb2_grpc.EmbedServiceServicer):
    """Texts to vectors."""

    def __init__(self, config: EmbedConfig, files: ModelFiles, encoder: Encoder, batcher: Batcher) -> None:
        self._config = config
        self._files = files
        self._encoder = encoder
        self._batcher = batcher

    async def Embed(
        self,
        request: embed_pb2.EmbedRequest,
        _context: grpc.aio.ServicerContext[embed_pb2.EmbedRequest, embed_pb2.EmbedResponse],
    ) -> embed_pb2.EmbedResponse:
        """Unit vectors of 1 to request_texts_max texts. INVALID_ARGUMENT names texts[i]."""
        check_texts(request.texts, self._config)
        self._check_model(request.model)
        lane = _LANES.get(request.kind)
        if lane is None:
            raise InvalidArgument(f"kind {request.kind} is not known", "kind")
        embedding = await self._batcher.embed(lane, tuple(request.texts), current_deadline())
        _record(embedding)
        vectors = np.ascontiguousarray(embedding.vectors, dtype="<f4")
        return embed_pb2.EmbedResponse(
            dim=self._encoder.dim,
            vectors=vectors.tobytes(),
            token_counts=embedding.token_counts,
            truncated=embedding.truncated,
            model=self._model(),
            batch_size=embedding.batch_size,
            queue_wait_us=embedding.queue_wait_us,
            compute_us=embedding.compute_us,
        )

    async def DescribeModel(
        self,
        _request: embed_pb2.DescribeModelRequest,
        _context: grpc.aio.ServicerContext[embed_pb2.DescribeModelRequest, embed_pb2.DescribeModelResponse],
    ) -> embed_pb2.DescribeModelResponse:
        """Which model is served."""
        return embed_pb2.DescribeModelResponse(
            model=self._model(), dim=self._encoder.dim, max_tokens=self._encoder.max_tokens
        )

    def _model(self) -> passage_pb2.EmbeddingModel:
        return passage_pb2.EmbeddingModel(id=self._files.id, revision=self._files.revision)

    def _check_model(self, wanted: str) -> None:
        if wanted and wanted != self._files.id:
            raise FailedPrecondition(f"model {wanted!r} is not served here; {self._files.id!r} is", "model")


def check_texts(texts: Sequence[str], config: EmbedConfig) -> None:
    """Raise InvalidArgument naming the first text that cannot be embedded."""
    texts_max = min(config.request_texts_max, config.queue_texts_max)
    if not texts:
        raise InvalidArgument("texts is empty; give at least one text", "texts")
    if len(texts) > texts_max:
        raise InvalidArgument(f"texts holds {len(texts)} texts; one call takes at most {texts_max}", "texts")
    for index, text in enumerate(texts):
        if not text.strip():
            raise InvalidArgument(f"texts[{index}] is empty", f"texts[{index}]")
        size = len(text.encode())
        if size > config.text_bytes_max:
            raise InvalidArgument(
                f"texts[{index}] has {size} bytes; at most {config.text_bytes_max} are taken", f"texts[{index}]"
            )


def _record(embedding: Embedding) -> None:
    """Put what happened in the queue onto the call's own span."""
    span = spans.current_span()
    span.set_attributes(
        {
            names.TEXTS: len(embedding.token_counts),
            names.TRUNCATED: sum(embedding.truncated),
            names.BATCH_SIZE: embedding.batch_size,
            names.QUEUE_WAIT_US: embedding.queue_wait_us,
            names.COMPUTE_US: embedding.compute_us,
        }
    )
