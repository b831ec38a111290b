"""Documents as listings and exports answer them, as frozen values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ostraka.results import MetadataScalar, Passage, ShardCoverage, Version, scalar_of
from ostraka.v1 import router_pb2 as pb


@dataclass(frozen=True, slots=True)
class DocumentSummary:
    """One document, without its passages; `metadata` is that of the first."""

    document_id: str
    source: str
    version: Version
    passages: int
    metadata: Mapping[str, MetadataScalar]
    shard: int

    @classmethod
    def from_proto(cls, d: pb.DocumentSummary) -> DocumentSummary:
        return cls(
            document_id=d.document_id,
            source=d.source,
            version=Version.from_proto(d.version),
            passages=d.passages,
            metadata={key: scalar_of(value) for key, value in d.metadata.items()},
            shard=d.shard,
        )


@dataclass(frozen=True, slots=True)
class DocumentPage:
    """Some documents, ascending by id."""

    documents: tuple[DocumentSummary, ...]
    next_page_token: str
    """For the page behind this one; empty: this was the last."""
    coverage: tuple[ShardCoverage, ...]

    @classmethod
    def from_proto(cls, response: pb.ListDocumentsResponse) -> DocumentPage:
        return cls(
            documents=tuple(map(DocumentSummary.from_proto, response.documents)),
            next_page_token=response.next_page_token,
            coverage=tuple(map(ShardCoverage.from_proto, response.coverage)),
        )


@dataclass(frozen=True, slots=True)
class ExportedDocument:
    """One whole document; passages carry vectors when they were asked for."""

    document_id: str
    version: Version
    passages: tuple[Passage, ...]

    @classmethod
    def from_proto(cls, d: pb.ExportedDocument) -> ExportedDocument:
        return cls(d.document_id, Version.from_proto(d.version), tuple(map(Passage.from_proto, d.passages)))
