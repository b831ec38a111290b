"""Retrieval quality of a judged corpus through the router, beside the same measures of references in process.

The references are exact cosine over the prepared vectors, BM25 by `bm25s` (Lucene's form, its own tokens, English stop
words and stems), and reciprocal rank fusion of the first 100 of both with the mesh's constants.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import bm25s
import numpy as np
import Stemmer

from benchmarks.datasets import Judged
from benchmarks.ingest import ingest
from benchmarks.measures import ndcg
from ostraka.client import Client
from ostraka.results import Consistency
from ostraka.search_modes import SearchMode
from services.router.fusion import Weights
from services.router.search_mode import DEPTH_DEFAULT

REPORTS = Path("reports")
CHECKED = 50
QUERIES_PER_CALL = 20
CALL_TIMEOUT_S = 60.0
K = 10


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What a run measured."""

    queries: int
    ndcg_at_10: Mapping[SearchMode, float]
    cosine_min: float | None
    """Least agreement of prepared and mesh-made vectors; None when nothing was prepared."""


async def fill(client: Client, data: Judged, *, prepared: bool) -> float | None:
    """Ingest the corpus into the client's collection; with prepared vectors, `check_prepared` first. Raises
    OstrakaError."""
    if not prepared:
        await ingest(client, data.corpus, on_progress=_print_progress)
        return None
    assert data.corpus_vectors is not None, "only what is prepared can be brought along"
    cosine_min = await check_prepared(client, data)
    await ingest(client, data.corpus[CHECKED:], data.corpus_vectors[CHECKED:], on_progress=_print_progress)
    return cosine_min


async def evaluate(client: Client, data: Judged, modes: Sequence[SearchMode], *, prepared: bool) -> Evaluation:
    """Ingest `data` and measure it in each mode at QUORUM. Raises OstrakaError."""
    cosine_min = await fill(client, data, prepared=prepared)
    found = {mode: await measure(client, data, mode, prepared=prepared) for mode in modes}
    return Evaluation(len(data.queries), found, cosine_min)


async def measure(client: Client, data: Judged, mode: SearchMode, *, prepared: bool) -> float:
    """nDCG@10 of one mode. With prepared vectors the queries bring theirs."""
    values: list[float] = []
    for start in range(0, len(data.queries), QUERIES_PER_CALL):
        part = data.queries[start : start + QUERIES_PER_CALL]
        texts = [text for _, text in part]
        queries: list[str | np.ndarray[tuple[int, ...], np.dtype[np.float32]]] = list(texts)
        words: list[str] | None = None
        if prepared and mode is not SearchMode.LEXICAL:
            assert data.query_vectors is not None, "only what is prepared can be brought along"
            queries = list(data.query_vectors[start : start + QUERIES_PER_CALL].astype(np.float32))
            words = None if mode is SearchMode.DENSE else texts
        results = await client.search_batch(
            queries, k=K, mode=mode, lexical_texts=words, consistency=Consistency.QUORUM, timeout_s=CALL_TIMEOUT_S
        )
        for (query_id, _), result in zip(part, results, strict=True):
            assert result.complete, result.coverage
            values.append(ndcg([hit.passage.document_id for hit in result], data.judgements[query_id], K))
    return sum(values) / len(values)


async def check_prepared(client: Client, data: Judged) -> float:
    """Store the first `CHECKED` passages by text, read their vectors back, return the least cosine to the prepared."""
    assert data.corpus_vectors is not None, "only what is prepared can be checked"
    chosen = data.corpus[:CHECKED]
    await ingest(client, chosen)
    reply = await client.get([document.document_id for document in chosen], include_vectors=True)
    made = {passage.document_id: passage.vector for passage in reply.passages}
    cosines = []
    for document, row in zip(chosen, data.corpus_vectors, strict=False):
        vector, prepared = made[document.document_id], row.astype(np.float32)
        assert vector is not None, "vectors were asked for"
        cosines.append(float(vector @ prepared / (np.linalg.norm(vector) * np.linalg.norm(prepared))))
    return min(cosines)


def references(data: Judged) -> dict[SearchMode, float]:
    """nDCG@10 of the references: BM25 always; dense and hybrid where vectors are prepared."""
    lexical = _best(_bm25_scores(data))
    found = {SearchMode.LEXICAL: _mean(data, lexical)}
    if data.corpus_vectors is not None and data.query_vectors is not None:
        dense = _best(data.query_vectors.astype(np.float32) @ data.corpus_vectors.astype(np.float32).T)
        found[SearchMode.DENSE] = _mean(data, dense)
        found[SearchMode.HYBRID] = _mean(
            data, [_fused(near, worded, Weights()) for near, worded in zip(dense, lexical, strict=True)]
        )
    return found


def _bm25_scores(data: Judged) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    stemmer = Stemmer.Stemmer("english")

    def tokens(texts: Sequence[str]) -> bm25s.tokenization.Tokenized:
        return bm25s.tokenize(list(texts), stopwords="en", stemmer=stemmer, show_progress=False)

    index = bm25s.BM25(method="lucene")
    corpus = tokens([document.embedded_text for document in data.corpus])
    index.index(corpus, show_progress=False)
    queries = bm25s.tokenize(
        [text for _, text in data.queries], stopwords="en", stemmer=stemmer, return_ids=False, show_progress=False
    )
    return np.stack([index.get_scores(words) for words in queries])


def _best(scores: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> list[list[int]]:
    """The first rows of each query, best first; rows of no score are none of BM25's."""
    order = np.argsort(-scores, axis=1, kind="stable")[:, :DEPTH_DEFAULT]
    return [[int(row) for row in rows if scores[query, row] != 0] for query, rows in enumerate(order)]


def _fused(near: Sequence[int], worded: Sequence[int], weights: Weights) -> list[int]:
    ranks = [{row: rank for rank, row in enumerate(rows, start=1)} for rows in (near, worded)]
    joined = {row: weights.score(ranks[0].get(row, 0), ranks[1].get(row, 0)) for row in ranks[0].keys() | ranks[1]}
    return sorted(joined, key=lambda row: (-joined[row], row))


def _mean(data: Judged, ranked: Sequence[Sequence[int]]) -> float:
    values = [
        ndcg([data.corpus[row].document_id for row in rows[:K]], data.judgements[query_id], K)
        for (query_id, _), rows in zip(data.queries, ranked, strict=True)
    ]
    return sum(values) / len(values)


def print_table(
    found: Evaluation, expected: Mapping[SearchMode, float], least: Mapping[SearchMode, float], title: str
) -> None:
    """One line per mode: through the router, the reference of this run, their ratio, and the least that is accepted."""
    print(f"{title}: nDCG@10 over {found.queries} queries at QUORUM")
    print(f"{'mode':<10} {'router':>8} {'reference':>10} {'ratio':>7} {'least':>7}")
    for mode, value in found.ndcg_at_10.items():
        reference, bound = expected.get(mode), least.get(mode)
        print(
            f"{mode.name.lower():<10} {value:>8.4f} "
            + (f"{reference:>10.4f} {value / reference:>7.3f}" if reference else f"{'':>10} {'':>7}")
            + (f" {bound:>7.3f}" if bound else "")
        )


def write_report(name: str, found: Evaluation, expected: Mapping[SearchMode, float], seconds: float) -> Path:
    """`reports/NAME.json`."""
    REPORTS.mkdir(exist_ok=True)
    path = REPORTS / f"{name}.json"
    content = {
        "corpus": name,
        "queries": found.queries,
        "ndcg_at_10": {mode.name.lower(): round(value, 4) for mode, value in found.ndcg_at_10.items()},
        "reference": {mode.name.lower(): round(value, 4) for mode, value in expected.items()},
        "ratio": {
            mode.name.lower(): round(value / expected[mode], 4)
            for mode, value in found.ndcg_at_10.items()
            if expected.get(mode)
        },
        "prepared_cosine_min": found.cosine_min,
        "seconds": round(seconds, 1),
    }
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return path


def _print_progress(stored: int) -> None:
    print(f"\r{stored:,} documents stored", end="", file=sys.stderr, flush=True)
