"""What a caller hands to the mesh: documents of passages, and vectors in whatever form they come."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ostraka.errors import InvalidRequest
from ostraka.results import MetadataScalar, Version
from ostraka.v1 import passage_pb2 as passage_pb
from ostraka.v1 import router_pb2 as router_pb

VectorLike: TypeAlias = NDArray[np.floating] | Sequence[float]
"""One dimension, any float type; the mesh normalises it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewPassage:
    """One passage to store; without a vector the mesh embeds it."""

    text: str
    title: str = ""
    vector: VectorLike | None = None
    char_start: int = 0
    char_end: int = 0
    metadata: Mapping[str, MetadataScalar] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class NewDocument:
    """A document; it replaces all passages of its predecessor, atomically."""

    document_id: str
    passages: Sequence[NewPassage]
    source: str = ""
    metadata: Mapping[str, MetadataScalar] = field(default_factory=dict)
    retry_version: Version | None = None
    """From an UNCERTAIN outcome: repeat that very write."""

    def to_proto(self) -> router_pb.NewDocument:
        """Raises InvalidRequest for a value of the wrong kind or out of the contract's range."""
        try:
            return router_pb.NewDocument(
                document_id=self.document_id,
                source=self.source,
                passages=[_passage(p, f"passages[{n}]") for n, p in enumerate(self.passages)],
                metadata=_metadata(self.metadata),
                retry_version=None if self.retry_version is None else self.retry_version.to_proto(),
            )
        except (TypeError, ValueError) as error:
            raise InvalidRequest(f"document {self.document_id!r}: {error}", field="documents") from error


def vector_to_proto(vector: VectorLike, field_name: str) -> passage_pb.Vector:
    """Little-endian float32 with its dimension. Raises InvalidRequest when it is not one row of numbers."""
    try:
        row = np.asarray(vector, dtype="<f4")
    except (TypeError, ValueError) as error:
        raise InvalidRequest(f"{field_name}: not a vector of numbers ({error})", field=field_name) from error
    if row.ndim != 1 or row.size == 0:
        raise InvalidRequest(f"{field_name}: a vector has one dimension, this has shape {row.shape}", field=field_name)
    return passage_pb.Vector(dim=row.size, data=row.tobytes())


def _passage(passage: NewPassage, where: str) -> router_pb.NewPassage:
    vector = None if passage.vector is None else vector_to_proto(passage.vector, f"{where}.vector")
    return router_pb.NewPassage(
        text=passage.text,
        title=passage.title,
        vector=vector,
        char_start=passage.char_start,
        char_end=passage.char_end,
        metadata=_metadata(passage.metadata),
    )


def _metadata(values: Mapping[str, MetadataScalar]) -> dict[str, passage_pb.MetadataValue]:
    converted = {}
    for key, value in values.items():
        if isinstance(value, bool):  # before int: a bool is one
            converted[key] = passage_pb.MetadataValue(flag=value)
        elif isinstance(value, str):
            converted[key] = passage_pb.MetadataValue(text=value)
        elif isinstance(value, int):
            converted[key] = passage_pb.MetadataValue(integer=value)
        elif isinstance(value, float):
            converted[key] = passage_pb.MetadataValue(number=value)
        else:
            name = f"metadata[{key!r}]"
            raise InvalidRequest(f"{name}: text, integer, number or flag, not {type(value).__name__}", field=name)
    return converted
