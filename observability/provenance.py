"""Provenance as one span attribute: `gen_ai.retrieval.documents`, JSON within a byte budget.

One attribute, because spans keep only a bounded number of attributes and evict the oldest, which are the best
hits. Passage text is never included.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ostraka.v1 import passage_pb2 as pb

BUDGET_BYTES = 16_384
HASH_DIGITS = 16
"""Hex digits kept of a sha256; the audit record has all."""


@dataclass(frozen=True, slots=True)
class Documents:
    """The attribute read back."""

    entries: tuple[Mapping[str, Any], ...]
    """Objects with id, score and metadata."""
    truncated: bool
    total: int
    """Passages there were, listed or not."""
    digest: str
    """Of the whole list, when it was cut; else ""."""


def documents_json(provenances: Sequence[pb.Provenance], budget_bytes: int = BUDGET_BYTES) -> str:
    """A JSON array of at most `budget_bytes` UTF-8 bytes: used passages (in the prompt, cited) first, then by rank.

    What does not fit is replaced by one last element {"truncated": true, "total": n, "digest": ...}. Raises
    ValueError when not even that fits.
    """
    ordered = sorted(provenances, key=lambda p: (not (p.in_prompt or p.cited), p.rank, p.passage_id))
    texts = [json.dumps(entry(p), separators=(",", ":"), ensure_ascii=False, allow_nan=False) for p in ordered]
    if _bytes(texts) <= budget_bytes:
        return f"[{','.join(texts)}]"
    last = {"truncated": True, "total": len(texts), "digest": digest(provenances)}
    tail = json.dumps(last, separators=(",", ":"))
    used = _bytes([tail])
    if used > budget_bytes:
        raise ValueError(f"a budget of {budget_bytes} bytes cannot hold even {used}")
    kept: list[str] = []
    for text in texts:
        used += len(text.encode()) + 1
        if used > budget_bytes:
            break
        kept.append(text)
    return f"[{','.join([*kept, tail])}]"


def parse_documents(text: str) -> Documents:
    """Read the attribute back. Raises ValueError."""
    elements = json.loads(text)
    if not isinstance(elements, list) or not all(isinstance(element, dict) for element in elements):
        raise ValueError("gen_ai.retrieval.documents is not an array of objects")
    if elements and elements[-1].get("truncated") is True:
        last = elements.pop()
        return Documents(tuple(elements), True, int(last["total"]), str(last["digest"]))
    return Documents(tuple(elements), False, len(elements), "")


def entry(p: pb.Provenance) -> dict[str, Any]:
    """One passage as it stands in the attribute."""
    return {
        "id": p.passage_id,
        "score": _score(p.score),
        "metadata": {
            "rank": p.rank,
            "dense_score": _score(p.dense_score),
            "dense_rank": p.dense_rank,
            "lexical_score": _score(p.lexical_score),
            "lexical_rank": p.lexical_rank,
            "source": p.source,
            "version": version_text(p.version),
            "shard": p.shard,
            "replica": p.replica,
            "index_epoch": p.index_epoch,
            "index_part": p.index_part,
            "index_kind": p.index_kind,
            "content_sha256": p.content_sha256.hex()[:HASH_DIGITS],
            "in_prompt": p.in_prompt,
            "cited": p.cited,
        },
    }


def version_text(version: pb.Version) -> str:
    """A version as text: clock and writer, 16 hex digits each."""
    return f"{version.hlc:016x}-{version.source:016x}"


def digest(provenances: Iterable[pb.Provenance]) -> str:
    """HASH_DIGITS hex digits over ids, versions and use of all passages, by rank."""
    ordered = sorted(provenances, key=lambda p: (p.rank, p.passage_id))
    rows = [[p.passage_id, version_text(p.version), p.in_prompt, p.cited] for p in ordered]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:HASH_DIGITS]


def _score(score: float) -> float | None:
    # Nine significant digits are what it takes to read a float32 back exactly.
    return float(f"{score:.9g}") if math.isfinite(score) else None


def _bytes(texts: Sequence[str]) -> int:
    return 2 + sum(len(text.encode()) for text in texts) + max(0, len(texts) - 1)
