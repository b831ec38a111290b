"""The public data sets beside the repository, read where they lie (`../shared/data`), never copied."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

DATA_DIR = Path(__file__).resolve().parents[2] / "shared" / "data"


class DataAbsentError(FileNotFoundError):
    """A data set is not on this machine; the message names the file that was looked for."""


@dataclass(frozen=True, slots=True)
class Document:
    """One passage-sized document."""

    document_id: str
    title: str
    text: str
    source: str

    @property
    def embedded_text(self) -> str:
        """The text that the mesh embeds for this passage."""
        return f"{self.title} {self.text}".strip() if self.title else self.text.strip()


@dataclass(frozen=True, slots=True)
class Judged:
    """A corpus, the judged queries of its test set, and all-MiniLM-L6-v2 vectors where they are prepared."""

    name: str
    corpus: tuple[Document, ...]
    queries: tuple[tuple[str, str], ...]
    """(query id, text), in the order in which the ids first appear in the judgements."""
    judgements: dict[str, dict[str, float]]
    corpus_vectors: npt.NDArray[np.float16] | None = None
    """(documents, 384), unit length."""
    query_vectors: npt.NDArray[np.float16] | None = None
    """(queries, 384), unit length."""


@dataclass(frozen=True, slots=True)
class SysDocs:
    """A sample of system documentation with prepared all-MiniLM-L6-v2 vectors."""

    documents: tuple[Document, ...]
    vectors: npt.NDArray[np.float16]
    """(26112, 384), unit length."""


def scifact(root: Path = DATA_DIR) -> Judged:
    """BEIR SciFact: 5,183 abstracts, 300 claims, with vectors. Raises DataAbsentError."""
    folder = root / "beir" / "scifact"
    corpus_vectors = np.load(_existing(folder / "corpus_minilm_f16.npy"))
    query_vectors = np.load(_existing(folder / "queries_test_minilm_f16.npy"))
    data = _judged("scifact", folder, corpus_vectors, query_vectors)
    assert len(data.corpus) == len(corpus_vectors)
    assert len(data.queries) == len(query_vectors)
    return data


def cosqa(root: Path = DATA_DIR) -> Judged:
    """CoSQA: 6,267 Python functions, 500 web queries, without vectors. Raises DataAbsentError."""
    return _judged("cosqa", root / "beir" / "cosqa")


def _judged(
    name: str,
    folder: Path,
    corpus_vectors: npt.NDArray[np.float16] | None = None,
    query_vectors: npt.NDArray[np.float16] | None = None,
) -> Judged:
    corpus = tuple(
        Document(row["_id"], row["title"], row["text"], f"{name}:{row['_id']}")
        for row in _json_lines(folder / "corpus.jsonl.gz")
    )
    texts = {row["_id"]: row["text"] for row in _json_lines(folder / "queries.jsonl.gz")}
    judgements: dict[str, dict[str, float]] = {}
    with _existing(folder / "qrels" / "test.tsv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            judgements.setdefault(row["query-id"], {})[row["corpus-id"]] = float(row["score"])
    queries = tuple((query_id, texts[query_id]) for query_id in judgements)
    return Judged(name, corpus, queries, judgements, corpus_vectors, query_vectors)


def sysdocs(root: Path = DATA_DIR) -> SysDocs:
    """Read the prepared sample of sysdocs. Raises DataAbsentError."""
    ids = _existing(root / "sysdocs_minilm_ids.txt").read_text(encoding="utf-8").splitlines()
    vectors = np.load(_existing(root / "sysdocs_minilm_f16.npy"))
    wanted = set(ids)
    rows = {row["_id"]: row for row in _json_lines(root / "sysdocs.jsonl.gz") if row["_id"] in wanted}
    documents = tuple(Document(key, rows[key]["title"], rows[key]["text"], rows[key]["source"]) for key in ids)
    assert len(documents) == len(vectors)
    return SysDocs(documents, vectors)


def sysdocs_texts(root: Path = DATA_DIR) -> tuple[Document, ...]:
    """All 114,362 passages of sysdocs, in the file's order, without vectors. Raises DataAbsentError."""
    rows = _json_lines(root / "sysdocs.jsonl.gz")
    return tuple(Document(row["_id"], row["title"], row["text"], row["source"]) for row in rows)


def _existing(path: Path) -> Path:
    if not path.exists():
        raise DataAbsentError(f"{path} does not exist; see README, section Data")
    return path


def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
    with gzip.open(_existing(path), "rt", encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)
