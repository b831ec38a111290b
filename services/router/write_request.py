"""Upsert as it arrives, checked and turned into payloads; every refusal names its field.

Only vectors are still missing afterwards, where the caller brought none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b, sha256

import numpy as np
from numpy.typing import NDArray

from ostraka.v1 import passage_pb2, router_pb2
from services.quorum.rows import OpKey
from services.router.catalogue import Catalogue, Collection
from services.router.identifiers import passage_id
from services.router.levels import WRITE_QUORUM, WriteLevel, write_level
from services.router.packing import ROW_OVERHEAD_BYTES
from services.router.read_request import check_distinct, check_document_id, check_model, check_text
from services.router.vectors import unit, vector_problem
from services.runtime.conditions import typed
from services.runtime.config import RouterConfig
from services.runtime.errors import InvalidArgument

TITLE_BYTES_MAX = 4_096
SOURCE_BYTES_MAX = 4_096
METADATA_KEY_BYTES_MAX = 256
KEY_BYTES_MAX = 128


@dataclass(slots=True)
class PassagePlan:
    """One passage to store: its message without version and vector, and the vector if it was brought along."""

    passage: passage_pb2.Passage
    vector: NDArray[np.float32] | None

    @property
    def embedded_text(self) -> str:
        """What the embedding model reads."""
        title, text = self.passage.title, self.passage.text
        return f"{title} {text}".strip() if title else text.strip()


@dataclass(slots=True)
class DocumentPlan:
    """One document to write; `retry_hlc_source` is the version of an uncertain earlier attempt."""

    document_id: str
    passages: Sequence[PassagePlan]
    retry_hlc_source: tuple[int, int] | None = None
    key: OpKey | None = None
    """How the caller names this write."""


@dataclass(frozen=True, slots=True)
class UpsertPlan:
    """An Upsert that makes sense."""

    collection: Collection
    documents: Sequence[DocumentPlan]
    level: WriteLevel.ValueType = WRITE_QUORUM


def upsert_plan(
    request: router_pb2.UpsertRequest, catalogue: Catalogue, limits: RouterConfig, batch_bytes_max: int
) -> UpsertPlan:
    """Raises InvalidArgument, NotFound (collection), FailedPrecondition (embedding_model)."""
    collection = catalogue.get(request.collection)
    check_model(request.embedding_model, collection)
    count = len(request.documents)
    if not 1 <= count <= limits.documents_max:
        raise InvalidArgument(f"holds {count} documents; an Upsert takes 1 to {limits.documents_max}", "documents")
    for index, document in enumerate(request.documents):
        check_document_id(document.document_id, f"documents[{index}].document_id")
    check_distinct([document.document_id for document in request.documents], "documents[{index}].document_id")
    documents = [
        _document(document, f"documents[{index}]", collection, limits, batch_bytes_max)
        for index, document in enumerate(request.documents)
    ]
    level = write_level(request.level)
    if request.idempotency_key:
        for plan, document in zip(documents, request.documents, strict=True):
            plan.key = write_key(request.idempotency_key, plan.document_id, _asked(document))
    return UpsertPlan(collection, documents, level)


def write_key(key: str, document_id: str, asked: bytes) -> OpKey:
    """The key of one document's write; `asked` is what the caller wants written. Raises InvalidArgument."""
    size = len(key.encode())
    if size > KEY_BYTES_MAX:
        raise InvalidArgument(f"is {size} bytes of UTF-8; 1 to {KEY_BYTES_MAX}", "idempotency_key")
    return OpKey(document_id, key, blake2b(asked, digest_size=16).digest())


def _asked(document: router_pb2.NewDocument) -> bytes:
    """The document as it was asked for, without what only an attempt says of itself."""
    plain = router_pb2.NewDocument()
    plain.CopyFrom(document)
    plain.ClearField("retry_version")
    return b"upsert" + plain.SerializeToString(deterministic=True)


def _document(
    document: router_pb2.NewDocument, where: str, collection: Collection, limits: RouterConfig, batch_bytes_max: int
) -> DocumentPlan:
    count = len(document.passages)
    if not count:
        raise InvalidArgument("is empty; a document has at least one passage, Delete removes one", f"{where}.passages")
    if count > limits.document_passages_max:
        raise InvalidArgument(
            f"holds {count} passages; a document has at most {limits.document_passages_max}", f"{where}.passages"
        )
    _bounded(document.source, f"{where}.source", SOURCE_BYTES_MAX)
    inherited = _metadata(document.metadata, collection, f"{where}.metadata", limits.metadata_bytes_max)
    passages = []
    total = 0
    for ordinal, new in enumerate(document.passages):
        field = f"{where}.passages[{ordinal}]"
        vector = _vector(new, collection.dim, field)
        passage = _passage(document, ordinal, new, inherited, collection, field, limits)
        size = passage.ByteSize() + 2 * collection.dim + len(document.document_id.encode()) + 2 * ROW_OVERHEAD_BYTES
        if size > batch_bytes_max:
            raise InvalidArgument(f"takes {size} bytes to store; at most {batch_bytes_max}", field)
        total += size
        passages.append(PassagePlan(passage, vector))
    if total > limits.document_bytes_max:
        raise InvalidArgument(
            f"take {total} bytes to store; a document takes at most {limits.document_bytes_max}", f"{where}.passages"
        )
    retry = None
    if document.HasField("retry_version"):
        retry = (document.retry_version.hlc, document.retry_version.source)
        if not retry[0] or not retry[1]:
            raise InvalidArgument("must be a version from an UNCERTAIN outcome, unchanged", f"{where}.retry_version")
    return DocumentPlan(document.document_id, passages, retry)


def _passage(
    document: router_pb2.NewDocument,
    ordinal: int,
    new: router_pb2.NewPassage,
    inherited: Mapping[str, passage_pb2.MetadataValue],
    collection: Collection,
    field: str,
    limits: RouterConfig,
) -> passage_pb2.Passage:
    if new.HasField("vector"):
        _bounded(new.text, f"{field}.text", limits.text_bytes_max)
    else:
        check_text(new.text, f"{field}.text", limits.text_bytes_max)
    _bounded(new.title, f"{field}.title", TITLE_BYTES_MAX)
    if new.char_end < new.char_start:
        raise InvalidArgument(f"{new.char_end} is before char_start {new.char_start}", f"{field}.char_end")
    passage = passage_pb2.Passage(
        passage_id=passage_id(document.document_id, ordinal),
        document_id=document.document_id,
        ordinal=ordinal,
        title=new.title,
        text=new.text,
        source=document.source,
        char_start=new.char_start,
        char_end=new.char_end,
        content_sha256=sha256(f"{new.title}\n{new.text}".encode()).digest(),
    )
    if inherited or new.metadata:
        own = _metadata(new.metadata, collection, f"{field}.metadata", limits.metadata_bytes_max)
        together = {**inherited, **own}
        _check_metadata_size(together, f"{field}.metadata", limits.metadata_bytes_max)
        for key, value in together.items():
            passage.metadata[key].CopyFrom(value)
    return passage


def _vector(new: router_pb2.NewPassage, dim: int, field: str) -> NDArray[np.float32] | None:
    if not new.HasField("vector"):
        return None
    data = new.vector.data
    if problem := vector_problem(new.vector.dim, data, dim):
        raise InvalidArgument(problem, f"{field}.vector")
    values = unit(data)
    if isinstance(values, str):
        raise InvalidArgument(values, f"{field}.vector")
    return values


def _metadata(
    given: Mapping[str, passage_pb2.MetadataValue], collection: Collection, field: str, bytes_max: int
) -> dict[str, passage_pb2.MetadataValue]:
    """The values, each of its declared type where one is declared; a number also takes an integer, which filters
    see as the nearest double and which is stored and served as it was given."""
    metadata = dict(given)
    for key, value in metadata.items():
        name = f"{field}[{key[:80]!r}]"
        if not key:
            raise InvalidArgument("has an empty key", field)
        _bounded(key, name, METADATA_KEY_BYTES_MAX)
        kind = value.WhichOneof("kind")
        if kind is None:
            raise InvalidArgument("has no value", name)
        if kind == "number" and not math.isfinite(value.number):
            raise InvalidArgument("is not a finite number", name)
        declared = collection.metadata.get(key)
        if declared is not None and typed(value, declared) is None:
            raise InvalidArgument(f"is of type {kind}, but {key} is declared as {declared}", name)
    _check_metadata_size(metadata, field, bytes_max)
    return metadata


def _check_metadata_size(metadata: Mapping[str, passage_pb2.MetadataValue], field: str, bytes_max: int) -> None:
    size = sum(
        len(key.encode()) + (len(value.text.encode()) if value.WhichOneof("kind") == "text" else 8)
        for key, value in metadata.items()
    )
    if size > bytes_max:
        raise InvalidArgument(f"takes {size} bytes; at most {bytes_max}", field)


def _bounded(text: str, field: str, bytes_max: int) -> None:
    if 4 * len(text) > bytes_max and (size := len(text.encode())) > bytes_max:
        raise InvalidArgument(f"is {size} bytes of UTF-8; at most {bytes_max}", field)
