"""What an ingest run has already had acknowledged, so that the next one goes on from there.

A file of JSON lines, one per acknowledged document, appended and flushed at once: an interruption costs at most
its last line. It is rewritten without its past when it is opened.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self, TextIO

from ostraka.errors import OstrakaError


class CheckpointError(OstrakaError):
    """The checkpoint file cannot be read or written; the message names it."""


def checkpoint_path(directory: Path, collection: str, arguments: Iterable[Path]) -> Path:
    """The file for ingesting these files and folders into this collection."""
    identity = json.dumps([collection, sorted(str(argument.resolve()) for argument in arguments)])
    return directory / f"{hashlib.sha256(identity.encode()).hexdigest()[:16]}.jsonl"


class Checkpoint:
    """Document id -> sha256 of the content last acknowledged."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._acknowledged: dict[str, str] = {}
        self._file: TextIO | None = None

    def __enter__(self) -> Self:
        """Read what is there, drop what it supersedes, and open it for appending. Raises CheckpointError."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._acknowledged = _read(self._path)
            fresh = self._path.with_suffix(".tmp")
            with fresh.open("w", encoding="utf-8") as file:
                file.writelines(map(_line, self._acknowledged, self._acknowledged.values()))
            fresh.replace(self._path)
            self._file = self._path.open("a", encoding="utf-8")
        except OSError as error:
            raise CheckpointError(f"{self._path}: {error.strerror}") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def __len__(self) -> int:
        return len(self._acknowledged)

    def holds(self, document_id: str, sha256: str) -> bool:
        """This very content was acknowledged before."""
        return self._acknowledged.get(document_id) == sha256

    def add(self, document_id: str, sha256: str) -> None:
        """Remember an acknowledged document. Raises CheckpointError."""
        assert self._file is not None, "add is called inside the with block"
        try:
            self._file.write(_line(document_id, sha256))
            self._file.flush()
        except OSError as error:
            raise CheckpointError(f"{self._path}: {error.strerror}") from error
        self._acknowledged[document_id] = sha256


def forget(directory: Path, document_ids: Iterable[str]) -> None:
    """Make every checkpoint in `directory` forget these documents, since they were deleted from the mesh."""
    lines = [_line(document_id, "") for document_id in document_ids]
    for path in sorted(directory.glob("*.jsonl")):
        with path.open("a", encoding="utf-8") as file:
            file.writelines(lines)


def _read(path: Path) -> dict[str, str]:
    """Later lines win; an empty digest forgets; a line that was cut off by an interruption is ignored."""
    known: dict[str, str] = {}
    if not path.exists():
        return known
    with path.open("rb") as file:
        for raw in file:
            try:
                record = json.loads(raw)
                document_id, sha256 = record["id"], record["sha256"]
            except (ValueError, KeyError, TypeError):
                continue
            if sha256:
                known[str(document_id)] = str(sha256)
            else:
                known.pop(str(document_id), None)
    return known


def _line(document_id: str, sha256: str) -> str:
    # A line break first ends a line that an interruption left open.
    return "\n" * (not sha256) + json.dumps({"id": document_id, "sha256": sha256}) + "\n"
