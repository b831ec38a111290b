"""One ranking from the hits of several shards. Pure.

Scores are exact on every shard (re-ranked against the stored vectors), so they compare. A document lives
on one shard, yet replies may overlap while placement changes: then its newest version wins as a whole, so
that a result never mixes passages of two versions (C7 in quorum.md).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol, TypeVar


class VersionLike(Protocol):
    """A version: ordered by `hlc`, then `source`."""

    @property
    def hlc(self) -> int: ...
    @property
    def source(self) -> int: ...


class HitLike(Protocol):
    """What merging needs to know of a hit."""

    @property
    def document_id(self) -> str: ...
    @property
    def ordinal(self) -> int: ...
    @property
    def score(self) -> float: ...
    @property
    def version(self) -> VersionLike: ...


H = TypeVar("H", bound=HitLike)


def merge(lists: Iterable[tuple[int, Iterable[H]]], k: int) -> list[tuple[int, H]]:
    """The best `k` of the shards' hits as (shard, hit), by score, ties by passage id.

    `lists` holds (shard, hits) in any order.
    """
    candidates: list[tuple[float, str, int, tuple[int, int], int, H]] = []
    newest: dict[str, tuple[int, int]] = {}
    for shard, hits in lists:
        for hit in hits:
            document, version = hit.document_id, (hit.version.hlc, hit.version.source)
            candidates.append((-hit.score, document, hit.ordinal, version, shard, hit))
            if version > newest.get(document, (-1, -1)):
                newest[document] = version
    candidates.sort(key=_rank)
    best: list[tuple[int, H]] = []
    seen: set[tuple[str, int]] = set()
    for _, document, ordinal, version, shard, hit in candidates:
        if len(best) == k:
            break
        if version == newest[document] and (document, ordinal) not in seen:
            seen.add((document, ordinal))
            best.append((shard, hit))
    return best


def _rank(candidate: tuple[float, str, int, tuple[int, int], int, object]) -> tuple[float, str, int]:
    return candidate[:3]


def relevant(scores: Sequence[float], score_min: float) -> list[int]:
    """Positions of the passages good enough for a prompt, in their order."""
    return [position for position, score in enumerate(scores) if score >= score_min]
