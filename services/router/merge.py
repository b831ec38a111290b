"""One ranking from the hits of several shards. Pure.

Scores are exact on every shard (re-ranked against the stored vectors), so they compare. A document lives
on one shard, yet replies may overlap while placement changes: then its newest version wins as a whole, so
that a result never mixes passages of two versions (C7 in quorum.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import attrgetter
from typing import Any, Protocol, TypeVar


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
Score = Callable[[Any], float]
Versions = Mapping[str, tuple[int, int]]
BY_SCORE: Score = attrgetter("score")


def newest_versions(*lists: Iterable[tuple[int, Iterable[H]]]) -> dict[str, tuple[int, int]]:
    """The newest version (hlc, source) of each document over all the hits."""
    newest: dict[str, tuple[int, int]] = {}
    for shards in lists:
        for _, hits in shards:
            for hit in hits:
                document, version = hit.document_id, (hit.version.hlc, hit.version.source)
                if version > newest.get(document, (-1, -1)):
                    newest[document] = version
    return newest


def merge(
    lists: Sequence[tuple[int, Sequence[H]]], k: int, score: Score = BY_SCORE, newest: Versions | None = None
) -> list[tuple[int, H]]:
    """The best `k` of the shards' hits as (shard, hit), by `score`, ties by passage id.

    `lists` holds (shard, hits) in any order. `newest`: the versions that count, when other lists have a say in it.
    """
    candidates: list[tuple[float, str, int, tuple[int, int], int, H]] = []
    counted: dict[str, tuple[int, int]] = {}
    for shard, hits in lists:
        for hit in hits:
            document, version = hit.document_id, (hit.version.hlc, hit.version.source)
            candidates.append((-score(hit), document, hit.ordinal, version, shard, hit))
            if version > counted.get(document, (-1, -1)):
                counted[document] = version
    candidates.sort(key=_rank)
    best: list[tuple[int, H]] = []
    seen: set[tuple[str, int]] = set()
    for _, document, ordinal, version, shard, hit in candidates:
        if len(best) == k:
            break
        if version == (newest or counted)[document] and (document, ordinal) not in seen:
            seen.add((document, ordinal))
            best.append((shard, hit))
    return best


def _rank(candidate: tuple[float, str, int, tuple[int, int], int, object]) -> tuple[float, str, int]:
    return candidate[:3]
