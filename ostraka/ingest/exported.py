"""Documents as lines of JSON, the form in which `ostraka export` writes them and `ostraka ingest` reads them back.

    {"_id": "guide.md", "source": "file:///guide.md", "version": "1a.2b",
     "passages": [{"title": "", "text": "...", "char_start": 0, "char_end": 3, "metadata": {"year": 2020}}]}

Passages stay as they are: they are not cut again, and keep their metadata. With vectors, each passage has `vector`, a
list of numbers, and is not embedded again. What an import loses is the version: the mesh gives each write its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ostraka.ingest.chunker import Chunk
from ostraka.listings import ExportedDocument
from ostraka.results import MetadataScalar, Passage


class ExportFormatError(ValueError):
    """A line is no exported document; the message names the part."""


def to_record(document: ExportedDocument) -> dict[str, Any]:
    """One document as JSON values."""
    return {
        "_id": document.document_id,
        "source": document.passages[0].source if document.passages else "",
        "version": str(document.version),
        "passages": [_passage(passage) for passage in document.passages],
    }


def is_exported(record: Mapping[str, Any]) -> bool:
    """Whether a line claims to be an exported document."""
    return isinstance(record.get("passages"), list)


def chunks_of(record: Mapping[str, Any]) -> tuple[Chunk, ...]:
    """The passages of an exported line. Raises ExportFormatError."""
    return tuple(_chunk(entry, f"passages[{number}]") for number, entry in enumerate(record["passages"]))


def scalars_of(metadata: object) -> dict[str, MetadataScalar]:
    """Those entries of a JSON object that metadata can hold; lists, objects and null are left out."""
    if not isinstance(metadata, Mapping):
        return {}
    return {str(key): value for key, value in metadata.items() if isinstance(value, (str, int, float, bool))}


def _passage(passage: Passage) -> dict[str, Any]:
    record: dict[str, Any] = {
        "title": passage.title,
        "text": passage.text,
        "char_start": passage.char_start,
        "char_end": passage.char_end,
    }
    if passage.metadata:
        record["metadata"] = dict(passage.metadata)
    if passage.vector is not None:
        record["vector"] = [float(value) for value in passage.vector]
    return record


def _chunk(entry: object, where: str) -> Chunk:
    if not isinstance(entry, Mapping):
        raise ExportFormatError(f"{where} is not an object")
    for key, kind in (("text", str), ("title", str), ("char_start", int), ("char_end", int), ("metadata", Mapping)):
        if key in entry and not isinstance(entry[key], kind):
            raise ExportFormatError(f"{where}.{key} is of type {type(entry[key]).__name__}")
    metadata = entry.get("metadata", {})
    if len(scalars_of(metadata)) != len(metadata):
        raise ExportFormatError(f"{where}.metadata holds something other than texts, numbers and flags")
    vector = entry.get("vector")
    numbers = isinstance(vector, list) and all(isinstance(value, (int, float)) for value in vector)
    if vector is not None and not numbers:
        raise ExportFormatError(f"{where}.vector is not a list of numbers")
    return Chunk(
        entry.get("text", ""),
        entry.get("title", ""),
        entry.get("char_start", 0),
        entry.get("char_end", 0),
        metadata=scalars_of(metadata),
        vector=None if vector is None else tuple(float(value) for value in vector),
    )
