"""Terms of passages on their way to the writer thread: analysed where the request is handled, taken at the commit."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable
from typing import Final

from services.shard.analyzer import Analyzer, RowTerms

BYTES_MAX: Final = 8 * 1024 * 1024
"""Of payloads and terms kept; what finds no room is analysed at the commit."""
POSTING_BYTES: Final = 10


class TermsAhead:
    """Terms by payload. `prepare` from any thread, `take` in the writer's."""

    def __init__(self, analyzer: Analyzer, bytes_max: int = BYTES_MAX) -> None:
        self._analyzer = analyzer
        self._bytes_max = bytes_max
        self._kept: OrderedDict[bytes, RowTerms] = OrderedDict()
        self._lock = threading.Lock()
        self.bytes = 0

    def prepare(self, payloads: Iterable[bytes]) -> None:
        """Analyse payloads that will be taken soon. The oldest give way: their writes were refused, or will analyse
        them again."""
        for payload in payloads:
            terms = self._analyzer.passage(payload)
            with self._lock:
                self._drop(payload)
                self._kept[payload] = terms
                self.bytes += _size(payload, terms)
                while self.bytes > self._bytes_max:
                    self._drop(next(iter(self._kept)))

    def take(self, payload: bytes) -> RowTerms:
        """The terms of a payload, analysed now unless they were before."""
        with self._lock:
            terms = self._drop(payload)
        return self._analyzer.passage(payload) if terms is None else terms

    def _drop(self, payload: bytes) -> RowTerms | None:
        terms = self._kept.pop(payload, None)
        if terms is not None:
            self.bytes -= _size(payload, terms)
        return terms


def _size(payload: bytes, terms: RowTerms) -> int:
    return len(payload) + POSTING_BYTES * len(terms.terms)
