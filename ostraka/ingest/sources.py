"""Which documents a set of files and folders holds, and why the rest is left out.

A document's id is its path below the folder named on the command line, that folder's name first; of a JSON line
it is the line's `_id`. Its source is a file URI. Nothing is executed or imported.
"""

from __future__ import annotations

import hashlib
import json
import os
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ostraka.ingest.blocks import Extract
from ostraka.ingest.chunker import Chunk, ChunkLimits, chunk
from ostraka.ingest.exported import ExportFormatError, chunks_of, is_exported, scalars_of
from ostraka.ingest.readers import READERS
from ostraka.ingest.readers.plain import read_plain
from ostraka.results import MetadataScalar

JSON_LINES = ".jsonl"
FILE_BYTES_MAX = 16 * 1024 * 1024
"""A larger file, or a larger JSON line, is skipped."""
DOCUMENT_ID_BYTES_MAX = 512
PASSAGES_MAX = 4_096
"""Passages of one document."""
_BINARY_PROBE_BYTES = 8_192
_SURROGATE = "holds a lone surrogate, which UTF-8 cannot express"
# Formats whose headings need not name the document.
_TITLED_BY_PATH = frozenset((".txt", ".py"))


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file to read; `name` begins with the name of the argument it was found under."""

    path: Path
    name: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Skip:
    """Something left out, and why."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class SourceDocument:
    """A document cut into passages; positions of the chunks point into the file's (or JSON line's) text."""

    document_id: str
    source: str
    chunks: tuple[Chunk, ...]
    sha256: str
    """Of the content as it lies in the file and how it was cut: equal means nothing to do."""
    size_bytes: int
    metadata: Mapping[str, MetadataScalar] = field(default_factory=dict)
    """Of every passage."""


def find_files(arguments: Iterable[Path]) -> Iterator[SourceFile | Skip]:
    """Every readable kind of file under `arguments`, in a stable order; hidden files and folders are passed over.

    A name that two arguments share is skipped the second time, since both would be one document.
    """
    seen: set[str] = set()
    for argument in arguments:
        for item in _walk(argument):
            if isinstance(item, SourceFile) and item.name in seen:
                yield Skip(item.name, "another argument holds a file of this name")
                continue
            seen.add(item.name)
            yield item


def read_documents(file: SourceFile, limits: ChunkLimits) -> Iterator[SourceDocument | Skip]:
    """The documents of one file, cut."""
    try:
        if file.path.suffix.lower() == JSON_LINES:
            yield from _json_lines(file, limits)
        else:
            yield _whole_file(file, limits)
    except OSError as error:
        yield Skip(file.name, f"unreadable: {error.strerror or error}")


def _walk(argument: Path) -> Iterator[SourceFile | Skip]:
    root = argument.resolve()
    if root.is_file():
        yield _file(root, root.name)
    elif root.is_dir():
        problems: list[Skip] = []

        def unreadable(error: OSError) -> None:
            problems.append(Skip(str(error.filename), f"unreadable: {error.strerror}"))

        for folder, folders, names in os.walk(root, onerror=unreadable):
            folders[:] = sorted(name for name in folders if not name.startswith((".", "__pycache__")))
            for name in sorted(name for name in names if not name.startswith(".")):
                path = Path(folder) / name
                yield _file(path, f"{root.name}/{path.relative_to(root).as_posix()}")
        yield from problems
    else:
        yield Skip(str(argument), "no such file or folder")


def _file(path: Path, name: str) -> SourceFile | Skip:
    suffix = path.suffix.lower()
    if suffix != JSON_LINES and suffix not in READERS:
        return Skip(name, f"unsupported type {suffix or 'without suffix'}")
    try:
        size = path.stat().st_size
    except OSError as error:
        return Skip(name, f"unreadable: {error.strerror}")
    if not path.is_file():
        return Skip(name, "not a regular file")
    if size == 0:
        return Skip(name, "empty")
    if size > FILE_BYTES_MAX and suffix != JSON_LINES:
        return Skip(name, f"too large: {size:,} bytes, at most {FILE_BYTES_MAX:,}")
    return SourceFile(path, name, size)


def _whole_file(file: SourceFile, limits: ChunkLimits) -> SourceDocument | Skip:
    content = file.path.read_bytes()
    text = _decode(content)
    if isinstance(text, Skip):
        return replace(text, name=file.name)
    suffix = file.path.suffix.lower()
    extract = READERS[suffix](text)
    if not extract.title and suffix in _TITLED_BY_PATH:
        extract = replace(extract, title=file.name)
    return _document(file.name, file.path.as_uri(), extract, content, limits)


def _json_lines(file: SourceFile, limits: ChunkLimits) -> Iterator[SourceDocument | Skip]:
    """One object a line: BEIR's layout with `_id`, `text` and perhaps `title` and `metadata`, or an exported document.

    Of BEIR's metadata, texts, numbers and flags are kept.
    """
    seen: set[str] = set()
    with file.path.open("rb") as lines:
        for number, line in enumerate(iter(lambda: lines.readline(FILE_BYTES_MAX + 1), b""), start=1):
            name = f"{file.name}:{number}"
            if not line.strip():
                continue
            if len(line) > FILE_BYTES_MAX:
                yield Skip(name, f"too large: the rest of the file is left out after {FILE_BYTES_MAX:,} bytes")
                return
            item = _json_document(line, name, f"{file.path.as_uri()}#L{number}", limits)
            if isinstance(item, SourceDocument):
                if item.document_id in seen:
                    item = Skip(name, f"_id {item.document_id!r} appears twice")
                else:
                    seen.add(item.document_id)
            yield item


def _json_document(line: bytes, name: str, source: str, limits: ChunkLimits) -> SourceDocument | Skip:
    try:
        record = json.loads(line)
    except UnicodeDecodeError:
        return Skip(name, "not UTF-8")
    except (ValueError, RecursionError) as error:
        return Skip(name, f"not JSON: {error}")
    if isinstance(record, dict) and isinstance(record.get("_id"), str) and is_exported(record):
        return _exported_document(record, name, source, line)
    if (
        not isinstance(record, dict)
        or not isinstance(record.get("_id"), str)
        or not isinstance(record.get("text"), str)
    ):
        return Skip(name, "not in BEIR layout: an object with the strings _id and text is needed")
    title = record.get("title", "")
    extract = replace(read_plain(record["text"]), title=title if isinstance(title, str) else "")
    document = _document(record["_id"], source, extract, line, limits)
    if isinstance(document, Skip):
        return replace(document, name=name)
    return replace(document, metadata=scalars_of(record.get("metadata")))


def _exported_document(record: dict[str, Any], name: str, source: str, line: bytes) -> SourceDocument | Skip:
    """An exported document as it was: same passages, same source."""
    try:
        chunks = chunks_of(record)
    except ExportFormatError as error:
        return Skip(name, f"not an exported document: {error}")
    problem = _problem(record["_id"], chunks)
    if problem:
        return replace(problem, name=name)
    given = record.get("source")
    return SourceDocument(
        record["_id"],
        given if isinstance(given, str) else source,
        chunks,
        hashlib.sha256(line).hexdigest(),
        len(line),
    )


def _decode(content: bytes) -> str | Skip:
    if b"\0" in content[:_BINARY_PROBE_BYTES]:
        return Skip("", "binary")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        return Skip("", f"not UTF-8: byte {content[error.start]:#04x} at position {error.start}")


def _document(
    document_id: str, source: str, extract: Extract, content: bytes, limits: ChunkLimits
) -> SourceDocument | Skip:
    if not _encodable(extract.title + extract.text):
        return Skip(repr(document_id), _SURROGATE)
    chunks = tuple(
        replace(piece, start=extract.position_in_file(piece.start), end=extract.position_in_file(piece.end))
        for piece in chunk(extract, limits)
    )
    problem = _problem(document_id, chunks)
    if problem:
        return problem
    digest = hashlib.sha256(content)
    digest.update(repr((source, limits)).encode())
    return SourceDocument(document_id, source, chunks, digest.hexdigest(), len(content))


def _problem(document_id: str, chunks: Sequence[Chunk]) -> Skip | None:
    """Why the mesh would not take such a document."""
    if not all(_encodable(text) for chunk_ in chunks for text in (chunk_.title, chunk_.text, *chunk_.metadata)):
        return Skip(repr(document_id), _SURROGATE)
    if not _encodable(document_id):
        return Skip(repr(document_id), _SURROGATE)
    size = len(document_id.encode("utf-8"))
    if not 1 <= size <= DOCUMENT_ID_BYTES_MAX or any(unicodedata.category(letter) == "Cc" for letter in document_id):
        return Skip(document_id, f"its id is empty, over {DOCUMENT_ID_BYTES_MAX} bytes or holds control characters")
    if not chunks:
        return Skip(document_id, "holds no text")
    if len(chunks) > PASSAGES_MAX:
        return Skip(document_id, f"too many passages: {len(chunks):,}, at most {PASSAGES_MAX:,}")
    return None


def _encodable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
