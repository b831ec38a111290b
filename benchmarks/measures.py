"""Retrieval measures. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt


def ndcg(ranked: Sequence[str], relevant: Mapping[str, float], k: int = 10) -> float:
    """Normalised discounted cumulative gain of the first `k` of `ranked`, 0 to 1.

    Gain is the judgement itself and the discount log2(rank + 1), as in trec_eval's ndcg_cut and BEIR (Jarvelin and
    Kekalainen, TOIS 2002). Raises ValueError when nothing is relevant or an id is ranked twice.
    """
    ideal = sorted((gain for gain in relevant.values() if gain > 0), reverse=True)[:k]
    if not ideal:
        raise ValueError("nDCG is not defined for a query without relevant documents")
    if len(set(ranked)) != len(ranked):
        raise ValueError("a document is ranked twice")
    found = [relevant.get(document_id, 0.0) for document_id in ranked[:k]]
    return _discounted(found) / _discounted(ideal)


def recall_at(
    found_rows: npt.NDArray[np.int64], exact_scores: npt.NDArray[np.float32], k: int, tolerance: float = 1e-5
) -> float:
    """Share of the true `k` nearest that a search found, 0 to 1.

    found_rows: (queries, <= k) row numbers, -1 where the search returned fewer. exact_scores: (queries, rows).
    A row that ties with the k-th within `tolerance` counts, so the order among equals does not matter.
    """
    kth = np.partition(exact_scores, -k, axis=1)[:, -k]
    scores = np.take_along_axis(exact_scores, found_rows.clip(min=0), axis=1)
    good = (scores >= kth[:, None] - tolerance) & (found_rows >= 0)
    return float(good.sum()) / (k * len(found_rows))


def _discounted(gains: Sequence[float]) -> float:
    return sum(gain / math.log2(rank + 1) for rank, gain in enumerate(gains, 1))
