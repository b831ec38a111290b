"""Documents for a mesh that holds none: the language reference that CPython ships, or a file.

Enough for a load test to have something to find; real documents come by `ostraka ingest`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics

from ostraka.client import Client
from ostraka.documents import NewDocument, NewPassage

PASSAGE_WORDS_MAX = 120
PASSAGES_MAX = 400
BATCH_PASSAGES = 64
BATCH_TIMEOUT_S = 60.0


class CorpusError(ValueError):
    """A corpus file cannot be read; the message names file and line."""


def builtin() -> Iterator[NewDocument]:
    """Topics of the Python language reference, at most `PASSAGES_MAX` passages in all."""
    left = PASSAGES_MAX
    for name, text in sorted(topics.items()):
        words = text.split()
        pieces = [" ".join(words[i : i + PASSAGE_WORDS_MAX]) for i in range(0, len(words), PASSAGE_WORDS_MAX)][:left]
        left -= len(pieces)
        if pieces:
            passages = [NewPassage(text=piece, title=name) for piece in pieces]
            yield NewDocument(document_id=f"python/{name}", passages=passages, source=f"pydoc:{name}")


def from_file(path: Path) -> Iterator[NewDocument]:
    """One JSON object a line with `_id`, `text` and perhaps `title`, `vector`. Raises CorpusError."""
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                yield _document(line, f"corpus file {path}:{number}", path)
    except (OSError, UnicodeDecodeError) as error:
        raise CorpusError(f"corpus file {path}: {error}") from error


async def seed(client: Client, documents: Iterator[NewDocument]) -> int:
    """Store the documents in the client's collection; returns how many passages. Raises OstrakaError."""
    passages = 0
    batch: list[NewDocument] = []
    waiting = 0
    for document in documents:
        batch.append(document)
        waiting += len(document.passages)
        if waiting >= BATCH_PASSAGES:
            await client.upsert(batch, timeout_s=BATCH_TIMEOUT_S)
            passages, batch, waiting = passages + waiting, [], 0
    if batch:
        await client.upsert(batch, timeout_s=BATCH_TIMEOUT_S)
    return passages + waiting


def _document(line: str, where: str, path: Path) -> NewDocument:
    try:
        row = json.loads(line)
        passage = NewPassage(text=row["text"], title=row.get("title", ""), vector=row.get("vector"))
        return NewDocument(document_id=str(row["_id"]), passages=[passage], source=row.get("source", path.as_uri()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise CorpusError(f"{where}: not a document with _id and text: {error!r}") from error
