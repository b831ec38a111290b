"""The recall canary of one replica: some live queries, searched again both ways on one view.

Which queries: a biased reservoir (Aggarwal, "On biased reservoir sampling in the presence of stream evolution", VLDB
2006), so that the sample follows what is asked now, not what was asked since the start. Both searches run on the same
view object, so writes in between cannot look like lost recall. A query is searched again when the segments, or how
much of them is alive, are others than when it was last measured, oldest measurement first: an idle replica ends up
with every sampled query measured on the index it has now, and then does nothing.
"""

from __future__ import annotations

import math
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from observability.logs import logger
from services.runtime.clock import Clock
from services.shard import view_search
from services.shard.view import View
from services.shard.view_search import Candidates

SAMPLE_MAX = 64
"""Queries kept: with ten hits each the mean is good to about half a percent."""
TAKEN = 0.25
"""Share of the queries that enter the sample once it is full."""
K_MAX = 100
"""Queries for more hits are not sampled: recall is promised for small k, and exact search costs the same."""
JUDGED_MIN = 16
"""Queries measured before the mean is compared with the target."""
SURE = 2.0
"""Standard errors the mean must be away from the target before anything is logged."""
_LOG = logger("shard")

LIVE_STEPS = 8
"""A segment counts as another one each time a further eighth of its rows has died: deletes cost recall too."""
IndexName = tuple[tuple[str, int], ...]
"""Segments and live eighths."""
Search = Callable[[View, NDArray[np.float32], int, bool], list[Candidates]]


@dataclass(frozen=True, slots=True)
class CanaryReading:
    """What the sample says; `recall` is NaN without queries."""

    recall: float
    """Mean recall@k."""
    queries: int
    age_ms: int
    """Since the last measurement; 0 without one."""


@dataclass(slots=True)
class _Sampled:
    query: NDArray[np.float32]
    k: int
    measured_on: IndexName | None = None
    recall: float = 0.0
    measured_s: float = 0.0


def both_ways(view: View, queries: NDArray[np.float32], k: int, exact: bool) -> list[Candidates]:
    """The production search."""
    return view_search.search(view, queries, k, exact=exact)


class Canary:
    """`offer` is called by searches, `step` by one background thread, `reading` from anywhere."""

    def __init__(
        self,
        replica_id: str,
        recall_target: float,
        clock: Clock,
        *,
        rng: random.Random | None = None,
        search: Search = both_ways,
    ) -> None:
        self._replica_id, self._target, self._clock = replica_id, recall_target, clock
        self._rng = rng or random.Random()  # noqa: S311  # a sample, not a secret
        self._search = search
        self._lock = threading.Lock()
        self._sample: list[_Sampled] = []
        self._low = False

    def offer(self, queries: NDArray[np.float32], k: int) -> None:
        """Maybe keep one of the unit queries (n, dim) of a search for the best `k`."""
        if k > K_MAX or not len(queries):
            return
        with self._lock:
            full = len(self._sample) >= SAMPLE_MAX
            if full and self._rng.random() >= TAKEN:
                return
            # A copy: a row would keep the whole batch alive.
            kept = _Sampled(queries[self._rng.randrange(len(queries))].copy(), k)
            if full:
                self._sample[self._rng.randrange(SAMPLE_MAX)] = kept
            else:
                self._sample.append(kept)

    def due(self, view: View) -> bool:
        """Whether some sampled query has not been measured on the index of `view`."""
        return self._next(_index_of(view)) is not None

    def step(self, view: View) -> bool:
        """Measure one query on `view`; False when there was none to measure. Blocks for one exact search."""
        index = _index_of(view)
        chosen = self._next(index)
        if chosen is None:
            return False
        recall = recall_of(
            self._search(view, chosen.query[None, :], chosen.k, False)[0],
            self._search(view, chosen.query[None, :], chosen.k, True)[0],
            chosen.k,
        )
        with self._lock:
            chosen.recall, chosen.measured_on, chosen.measured_s = recall, index, self._clock.monotonic_s()
        self._judge()
        return True

    def reading(self) -> CanaryReading:
        """The mean over the sampled queries that were measured."""
        with self._lock:
            measured = [one for one in self._sample if one.measured_on is not None]
        if not measured:
            return CanaryReading(math.nan, 0, 0)
        age_s = self._clock.monotonic_s() - max(one.measured_s for one in measured)
        return CanaryReading(
            sum(one.recall for one in measured) / len(measured), len(measured), max(0, int(age_s * 1_000))
        )

    def _next(self, index: IndexName) -> _Sampled | None:
        with self._lock:
            waiting = [one for one in self._sample if one.measured_on != index]
        # Those never measured have 0 and come first.
        return min(waiting, key=lambda one: one.measured_s, default=None)

    def _judge(self) -> None:
        """Log when the mean has fallen below the target, or is back; only a clear difference counts."""
        with self._lock:
            values = [one.recall for one in self._sample if one.measured_on is not None]
        if len(values) < JUDGED_MIN:
            return
        mean, error = float(np.mean(values)), float(np.std(values) / math.sqrt(len(values)))
        if not self._low and mean + SURE * error < self._target:
            self._low = True
            _LOG.warning(
                "recall is below its target",
                replica=self._replica_id,
                recall=round(mean, 4),
                target=self._target,
                queries=len(values),
            )
        elif self._low and mean >= self._target:
            self._low = False
            _LOG.info("recall is at its target again", replica=self._replica_id, recall=round(mean, 4))


def recall_of(found: Candidates, exact: Candidates, k: int) -> float:
    """Share of the true best `k` that were found; rows that tie with the k-th are as good as it."""
    wanted = min(k, len(exact.scores))
    if not wanted:
        return 1.0
    kth = exact.scores[wanted - 1]
    return float(np.count_nonzero(found.scores[:wanted] >= kth)) / wanted


def _index_of(view: View) -> IndexName:
    return tuple((part.segment.name, round(part.live * LIVE_STEPS / part.segment.rows)) for part in view.parts)
