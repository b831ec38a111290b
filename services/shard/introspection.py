"""The thread in which a node measures itself: recall canaries and codec drift, only while no client's search runs.

An exact search takes a core for as long as reading every vector takes, so each step is paid for out of a budget of CPU
time, and the thread asks before each whether the search pool is idle.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Mapping

from observability.logs import logger
from services.runtime.clock import Clock
from services.shard import faiss_index
from services.shard.background import NICE
from services.shard.codecs import CodecStore
from services.shard.cpu_budget import CpuBudget, StoppedError
from services.shard.drift import Drift
from services.shard.hosted import HostedReplica

TICK_S = 0.5
CPU_SHARE = 0.1
"""Of one core, or `shard.background_cpu` if that is less."""
BACKOFF_S = 30.0
"""After a failure: what is measured here only tells, so it may wait."""
_LOG = logger("shard")


class Introspection:
    """Background measuring for all replicas of a node."""

    def __init__(
        self,
        replicas: Iterable[HostedReplica],
        stores: Mapping[str, CodecStore],
        idle: Callable[[], bool],
        clock: Clock,
        cpu_share: float = CPU_SHARE,
    ) -> None:
        """`replicas`: looked at anew each round, since members change. `stores`: codecs by collection; read when the
        thread starts. `idle`: no search waits or runs."""
        self._replicas, self._stores = replicas, stores
        self._idle, self._clock = idle, clock
        self._budget = CpuBudget(min(CPU_SHARE, cpu_share))
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="introspection", daemon=True)

    def start(self) -> None:
        """Begin; after the node has opened its replicas and codecs."""
        self._thread.start()

    def stop(self) -> None:
        """Stop after the step under way; returns when the thread has ended."""
        self._stop.set()
        self._budget.stop()
        if self._thread.is_alive():
            self._thread.join()

    def round(self) -> None:
        """One step for each replica that has something to measure, as long as nobody searches. Raises StoppedError."""
        self._budget.begin()
        for replica in tuple(self._replicas):
            if replica.drift is None and replica.collection in self._stores:
                replica.drift = Drift(self._stores[replica.collection], self._clock)
            engine = replica.engine
            if engine is None or replica.reason or engine.damaged:
                continue
            for measure in (replica.canary, replica.drift):
                if not self._idle():
                    return
                if measure is not None:
                    measure.step(engine.view)
                    self._budget.pause()

    def _run(self) -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)  # Linux: of this thread alone
        faiss_index.use_one_thread()
        pause_s = TICK_S
        while not self._stop.wait(pause_s):
            try:
                self.round()
                pause_s = TICK_S
            except StoppedError:
                return
            except Exception as error:
                # A defect here must end neither the thread nor the process.
                _LOG.exception("measuring the index failed", error)
                pause_s = BACKOFF_S
