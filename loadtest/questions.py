"""Questions as values and as lines of a file."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

WRITER_PREFIX = "loadtest-writer-"
"""Begins the ids of the documents that the harness itself writes; they are deleted after the run."""


class NoQuestionsError(RuntimeError):
    """Nothing to ask about was found; the message says where it was looked for."""


@dataclass(frozen=True, slots=True)
class Question:
    """A text, or `dim` little-endian float32 values."""

    text: str = ""
    vector: bytes = b""


def from_file(path: Path) -> tuple[Question, ...]:
    """One question a line, blank lines skipped. Raises NoQuestionsError."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise NoQuestionsError(f"questions file {path}: {error}") from error
    questions = tuple(Question(text=line.strip()) for line in lines if line.strip())
    if not questions:
        raise NoQuestionsError(f"questions file {path} holds no question")
    return questions


def write_questions(path: Path, questions: Sequence[Question]) -> None:
    """One JSON object a line."""
    rows = ({"text": q.text, "vector": base64.b64encode(q.vector).decode()} for q in questions)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def read_questions(path: Path) -> tuple[Question, ...]:
    """What `write_questions` wrote."""
    rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return tuple(Question(row["text"], base64.b64decode(row["vector"])) for row in rows)
