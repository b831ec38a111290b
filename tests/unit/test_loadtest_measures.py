"""nDCG and recall against values worked out by hand, and SciFact's reference with exact search."""

from __future__ import annotations

import math

import numpy as np
import pytest

from benchmarks import datasets
from benchmarks.measures import ndcg, recall_at


def test_ndcg_by_hand() -> None:
    relevant = {"a": 1.0, "b": 1.0}
    assert ndcg(["a", "b", "c"], relevant) == pytest.approx(1)
    assert ndcg(["x", "y"], relevant) == 0
    assert ndcg([], relevant) == 0
    expected = (1 / math.log2(3)) / (1 + 1 / math.log2(3))
    assert ndcg(["x", "a"], relevant) == pytest.approx(expected)


def test_ndcg_uses_graded_gains_and_the_cut() -> None:
    relevant = {"a": 2.0, "b": 1.0, "c": 0.0}
    expected = (1 + 2 / math.log2(3)) / (2 + 1 / math.log2(3))
    assert ndcg(["b", "a"], relevant) == pytest.approx(expected)
    assert ndcg(["x", "b", "a"], relevant, k=1) == 0


def test_more_relevant_documents_than_k_can_still_score_one() -> None:
    assert ndcg(["a", "b"], dict.fromkeys("abcd", 1.0), k=2) == pytest.approx(1)


def test_undefined_ndcg_raises() -> None:
    with pytest.raises(ValueError, match="not defined"):
        ndcg(["a"], {"a": 0.0})
    with pytest.raises(ValueError, match="ranked twice"):
        ndcg(["a", "a"], {"a": 1.0})


def test_recall_counts_ties_and_missing_hits() -> None:
    exact = np.array([[0.9, 0.8, 0.7, 0.7, 0.1]], np.float32)
    assert recall_at(np.array([[0, 1, 2]]), exact, 3) == 1
    assert recall_at(np.array([[0, 1, 3]]), exact, 3) == 1
    assert recall_at(np.array([[0, 1, 4]]), exact, 3) == pytest.approx(2 / 3)
    assert recall_at(np.array([[0, -1, -1]]), exact, 3) == pytest.approx(1 / 3)


def test_prepared_scifact_vectors_reach_the_reference() -> None:
    try:
        data = datasets.scifact()
    except datasets.DataAbsentError as absent:
        pytest.skip(str(absent))
    assert data.query_vectors is not None
    assert data.corpus_vectors is not None
    scores = data.query_vectors.astype(np.float32) @ data.corpus_vectors.astype(np.float32).T
    best = np.argsort(-scores, axis=1)[:, :10]
    values = [
        ndcg([data.corpus[row].document_id for row in rows], data.judgements[query_id])
        for rows, (query_id, _) in zip(best, data.queries, strict=True)
    ]
    assert len(values) == 300
    assert sum(values) / 300 == pytest.approx(0.644, abs=0.002)
