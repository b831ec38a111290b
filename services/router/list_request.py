"""ListDocuments, Export and Delete as they arrive, checked; every refusal names its field."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ostraka.v1 import passage_pb2, router_pb2
from services.quorum.rows import OpKey
from services.router import page_token
from services.router.catalogue import Catalogue, Collection
from services.router.levels import WRITE_QUORUM, WriteLevel, write_level
from services.router.page_token import PageTokenError
from services.router.read_request import (
    Reading,
    check_distinct,
    check_document_id,
    checked_filter,
    reading_of,
)
from services.router.write_request import SOURCE_BYTES_MAX, write_key
from services.runtime.config import RouterConfig
from services.runtime.errors import InvalidArgument

PAGE_SIZE_DEFAULT = 100
PAGE_SIZE_MAX = 1_000


@dataclass(frozen=True, slots=True)
class ListPlan:
    """A ListDocuments that makes sense."""

    reading: Reading
    filter: passage_pb2.Filter | None
    after: str
    """Documents behind this id; empty: from the first."""
    size: int


@dataclass(frozen=True, slots=True)
class ExportPlan:
    """An Export that makes sense."""

    reading: Reading
    filter: passage_pb2.Filter | None
    include_vectors: bool


@dataclass(frozen=True, slots=True)
class DeletePlan:
    """A Delete that makes sense: ids, or a condition that names the documents (`filter` not None)."""

    collection: Collection
    document_ids: Sequence[str]
    filter: passage_pb2.Filter | None
    level: WriteLevel.ValueType = WRITE_QUORUM
    keys: Sequence[OpKey] = ()
    """One per id when the caller named the write, else none."""


def list_plan(request: router_pb2.ListDocumentsRequest, catalogue: Catalogue) -> ListPlan:
    """Raises InvalidArgument, NotFound (collection)."""
    collection = catalogue.get(request.collection)
    wanted = checked_filter(request, collection)
    size = request.page_size if request.HasField("page_size") else PAGE_SIZE_DEFAULT
    if not 1 <= size <= PAGE_SIZE_MAX:
        raise InvalidArgument(f"is {size}; 1 to {PAGE_SIZE_MAX}", "page_size")
    try:
        after = page_token.decode(request.page_token, collection.name, wanted)
    except PageTokenError as error:
        raise InvalidArgument(f"{error}; pass it unchanged as a reply gave it", "page_token") from None
    reading = reading_of(request, collection)
    return ListPlan(reading, wanted, after, size)


def export_plan(request: router_pb2.ExportRequest, catalogue: Catalogue) -> ExportPlan:
    """Raises InvalidArgument, NotFound (collection)."""
    collection = catalogue.get(request.collection)
    wanted = checked_filter(request, collection)
    reading = reading_of(request, collection)
    return ExportPlan(reading, wanted, request.include_vectors)


def delete_plan(request: router_pb2.DeleteRequest, catalogue: Catalogue, limits: RouterConfig) -> DeletePlan:
    """Raises InvalidArgument, NotFound (collection)."""
    collection = catalogue.get(request.collection)
    given = [
        name
        for name, present in (
            ("document_ids", bool(request.document_ids)),
            ("source", bool(request.source)),
            ("filter", request.HasField("filter")),
        )
        if present
    ]
    if not given:
        raise InvalidArgument(
            "holds 0 ids; a Delete names its documents by document_ids, source or filter", "document_ids"
        )
    if len(given) > 1:
        raise InvalidArgument(f"is given beside {given[0]}; a Delete takes exactly one of them", given[1])
    level = write_level(request.level)
    if request.idempotency_key and not request.document_ids:
        raise InvalidArgument(
            f"needs document_ids: what {given[0]} names may differ from one attempt to the next", "idempotency_key"
        )
    if request.HasField("filter"):
        return DeletePlan(collection, (), checked_filter(request, collection), level)
    if request.source:
        size = len(request.source.encode())
        if size > SOURCE_BYTES_MAX:
            raise InvalidArgument(f"is {size} bytes of UTF-8; at most {SOURCE_BYTES_MAX}", "source")
        value = passage_pb2.MetadataValue(text=request.source)
        by_source = passage_pb2.Filter(equals=passage_pb2.Equals(field="source", value=value))
        return DeletePlan(collection, (), by_source, level)
    count = len(request.document_ids)
    if count > limits.documents_max:
        raise InvalidArgument(f"holds {count} ids; a Delete takes 1 to {limits.documents_max}", "document_ids")
    for index, document_id in enumerate(request.document_ids):
        check_document_id(document_id, f"document_ids[{index}]")
    check_distinct(request.document_ids, "document_ids[{index}]")
    ids, key = list(request.document_ids), request.idempotency_key
    keys = [write_key(key, document_id, b"delete") for document_id in ids] if key else []
    return DeletePlan(collection, ids, None, level, keys)
