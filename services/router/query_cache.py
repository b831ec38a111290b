"""Embeddings of recent queries, least recently used out first. Pure.

An entry never goes stale: the key names the model and its revision, and a model's vector for a text does
not change.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, TypeVar

V = TypeVar("V")


class QueryCache(Generic[V]):
    """A bounded map from (model, revision, text) to a vector."""

    def __init__(self, entries_max: int) -> None:
        """`entries_max` 0 keeps nothing."""
        self._entries: OrderedDict[tuple[str, str, str], V] = OrderedDict()
        self._entries_max = entries_max
        self.hits = 0
        self.misses = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, model: str, revision: str, text: str) -> V | None:
        """The vector, marked as just used; None when it is not kept."""
        key = (model, revision, text)
        found = self._entries.get(key)
        if found is None:
            self.misses += 1
            return None
        self.hits += 1
        self._entries.move_to_end(key)
        return found

    def put(self, model: str, revision: str, text: str, vector: V) -> None:
        """Keep a vector; the least recently used entry makes room."""
        key = (model, revision, text)
        self._entries[key] = vector
        self._entries.move_to_end(key)
        while len(self._entries) > self._entries_max:
            self._entries.popitem(last=False)
