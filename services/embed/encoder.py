"""The model itself: texts to unit vectors, with token counts. Owned by one thread."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from services.embed.batching import Lane
from services.embed.model import ModelFiles
from services.runtime.config import ConfigError


@dataclass(frozen=True, slots=True)
class Encoded:
    """One forward pass's result, row i for text i."""

    vectors: NDArray[np.float32]
    """(texts, dim), unit length."""
    token_counts: tuple[int, ...]
    """Tokens of the whole text, special tokens included, also when the model saw only the beginning."""
    truncated: tuple[bool, ...]


class Encoder(Protocol):
    """What the batcher needs of a model."""

    @property
    def dim(self) -> int: ...

    @property
    def max_tokens(self) -> int:
        """Tokens the model reads of one text; the rest is cut off. 0: no limit."""
        ...

    def encode(self, lane: Lane, texts: Sequence[str]) -> Encoded:
        """Embed non-empty texts of one kind. Blocking."""
        ...


class SentenceEncoder:
    """A sentence-transformers model on the CPU, with the prompts it defines for queries and passages."""

    def __init__(self, files: ModelFiles, *, threads: int) -> None:
        """Load the model; `threads` 0 means one per core. Raises ConfigError when the files are not a model."""
        # Imported here: torch takes seconds, and configuration errors should not have to wait for it.
        import torch
        from sentence_transformers import SentenceTransformer
        from transformers.utils import logging

        logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers leaves it unannotated
        torch.set_num_threads(threads or os.cpu_count() or 1)
        try:
            self._model = SentenceTransformer(
                str(files.path), device="cpu", local_files_only=True, model_kwargs={"use_safetensors": True}
            )
        except Exception as error:
            # Broken files surface as anything from KeyError to the weight reader's own type.
            why = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ConfigError(f"embed.model: {files.path} cannot be loaded: {why}") from error
        self._model.eval()
        dim = self._model.get_embedding_dimension()
        assert dim, "a sentence-transformers model has a dimension"
        self._dim = int(dim)
        self._max_tokens = int(self._model.max_seq_length or 0)

    @property
    def dim(self) -> int:
        return self._dim

    @property
    def max_tokens(self) -> int:
        return self._max_tokens

    def encode(self, lane: Lane, texts: Sequence[str]) -> Encoded:
        """See Encoder. Raises FloatingPointError when the model yields something that is not a unit vector."""
        encode = self._model.encode_query if lane is Lane.QUERY else self._model.encode_document
        vectors = np.asarray(
            encode(list(texts), batch_size=len(texts), normalize_embeddings=True, show_progress_bar=False),
            dtype="<f4",
        )
        assert vectors.shape == (len(texts), self._dim)
        if not np.allclose(np.einsum("ij,ij->i", vectors, vectors), 1.0, atol=1e-3):
            raise FloatingPointError("the model returned a vector that cannot be normalised")
        counts = tuple(_token_counts(self._model.tokenizer, texts))
        limit = self._max_tokens
        return Encoded(vectors, counts, tuple(bool(limit) and count > limit for count in counts))


def _token_counts(tokenizer: Any, texts: Sequence[str]) -> list[int]:
    """Tokens of each text without truncation. `tokenizer` is transformers' or, for static models, tokenizers'."""
    if hasattr(tokenizer, "encode_batch"):
        return [len(encoding.ids) for encoding in tokenizer.encode_batch(list(texts))]
    ids = tokenizer(
        list(texts),
        truncation=False,
        padding=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )
    return [len(row) for row in ids["input_ids"]]
