"""The thread that feeds the canaries of a node: one exact search at a time, only while no client's search runs.

An exact search takes a core for as long as reading every vector takes, so each one is followed by a pause that keeps
the thread within its share of a core, and the thread asks before each whether the search pool is idle.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

from observability.logs import logger
from services.runtime.clock import Clock
from services.shard import faiss_index
from services.shard.hosted import HostedReplica

TICK_S = 0.5
CPU_SHARE = 0.1
"""Of one core."""
BACKOFF_S = 30.0
"""After a failure: the canary only tells, so it may wait."""
_LOG = logger("shard")


class CanaryRounds:
    """Background measuring for all replicas of a node."""

    def __init__(self, replicas: Iterable[HostedReplica], idle: Callable[[], bool], clock: Clock) -> None:
        self._replicas, self._idle, self._clock = tuple(replicas), idle, clock
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="canary", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Stop after the search under way; returns when the thread has ended."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def round(self) -> float:
        """Measure one query of each replica that has one to measure; seconds of work this was."""
        worked_s = 0.0
        for replica in self._replicas:
            canary, engine = replica.canary, replica.engine
            if canary is None or engine is None or replica.reason or engine.damaged:
                continue
            if self._stop.is_set() or not self._idle():
                break
            began_s = self._clock.monotonic_s()
            canary.step(engine.view)
            worked_s += self._clock.monotonic_s() - began_s
        return worked_s

    def _run(self) -> None:
        faiss_index.use_one_thread()
        pause_s = TICK_S
        while not self._stop.wait(pause_s):
            try:
                pause_s = max(TICK_S, self.round() * (1 / CPU_SHARE - 1))
            except Exception as error:
                # A defect here must end neither the thread nor the process.
                _LOG.exception("the recall canary failed", error)
                pause_s = BACKOFF_S
