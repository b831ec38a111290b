"""What the ShardService answers about statistics: all terms of one replica's live rows, in pieces."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final

import numpy as np

from ostraka.v1 import shard_pb2
from services.runtime.errors import Unavailable
from services.shard.background import in_background
from services.shard.engine import Engine
from services.shard.hosted import HostedReplica
from services.shard.lexical_view import lexical_parts
from services.shard.statistics import TERMS_MAX, Vocabulary, vocabulary
from services.shard.view import View
from services.shard.wire import WireError

TERMS_PER_MESSAGE: Final = 1 << 16
"""Less than a megabyte of each message."""
RETRY_MS: Final = 1_000


def stamp_of(view: View, analyzer: str) -> str:
    """Equal for equal content analysed alike, on any replica."""
    return f"{analyzer}:{view.rows_live}:{view.digest_bytes.hex()}"


async def statistics_chunks(
    replica: HostedReplica | None, request: shard_pb2.StatisticsRequest
) -> AsyncIterator[shard_pb2.StatisticsResponse]:
    """The stamp and totals, then all terms; the stamp alone when the caller has it already.

    Raises Unavailable: ask another replica.
    """
    if replica is None or replica.engine is None or replica.reason or not replica.caught_up:
        why = "not hosted here" if replica is None else replica.reason or "the replica is catching up"
        raise Unavailable(f"shard {request.shard} of {request.collection!r}: {why}", retry_ms=RETRY_MS)
    stamp = stamp_of(replica.engine.view, replica.engine.lexical.analyzer.name)
    if stamp == request.have_stamp:
        yield shard_pb2.StatisticsResponse(stamp=stamp)
        return
    engine = replica.engine
    for chunk in await in_background("statistics", lambda: _pieces(engine)):
        yield chunk


def _pieces(engine: Engine) -> list[shard_pb2.StatisticsResponse]:
    view = engine.view
    analyzer = engine.lexical.analyzer.name
    found = vocabulary(lexical_parts(view))
    first = shard_pb2.StatisticsResponse(
        stamp=stamp_of(view, analyzer), analyzer=analyzer, passages=found.passages, tokens=found.tokens
    )
    cuts = range(0, len(found.terms), TERMS_PER_MESSAGE)
    return [
        first,
        *(
            shard_pb2.StatisticsResponse(
                terms=found.terms[cut : cut + TERMS_PER_MESSAGE].tolist(),
                document_frequencies=found.frequencies[cut : cut + TERMS_PER_MESSAGE].tolist(),
            )
            for cut in cuts
        ),
    ]


class Received:
    """The pieces of one answer, put together. Raises WireError on what no replica sends."""

    def __init__(self, first: shard_pb2.StatisticsResponse, analyzer: str) -> None:
        if first.analyzer != analyzer:
            raise WireError("analyzer", f"statistics are of {first.analyzer!r}, not of {analyzer!r}")
        self._first = first
        self._terms = [np.empty(0, dtype=np.uint64)]
        self._frequencies = [np.empty(0, dtype=np.uint32)]
        self._count = 0

    def add(self, piece: shard_pb2.StatisticsResponse) -> None:
        """One more piece."""
        if len(piece.terms) != len(piece.document_frequencies):
            raise WireError("document_frequencies", "must be parallel to terms")
        self._count += len(piece.terms)
        if self._count > TERMS_MAX:
            raise WireError("terms", f"a shard has at most {TERMS_MAX} terms")
        self._terms.append(np.array(piece.terms, dtype=np.uint64))
        self._frequencies.append(np.array(piece.document_frequencies, dtype=np.uint32))

    def whole(self) -> tuple[str, Vocabulary]:
        """(stamp, statistics)"""
        terms, frequencies = np.concatenate(self._terms), np.concatenate(self._frequencies)
        if not bool((terms[:-1] < terms[1:]).all()):
            raise WireError("terms", "must ascend")
        if len(frequencies) and int(frequencies.max()) > self._first.passages:
            raise WireError("document_frequencies", f"exceed the {self._first.passages} passages there are")
        return self._first.stamp, Vocabulary(self._first.passages, self._first.tokens, terms, frequencies)
