"""The threads in which searches run: as many as cores, a bounded queue before them, FAISS single-threaded within."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from services.runtime.clock import Clock
from services.runtime.deadline import Deadline
from services.shard import faiss_index

T = TypeVar("T")


class PoolFullError(Exception):
    """More work is waiting than the queue may hold."""


class SearchPool:
    """Runs blocking reads for one event loop."""

    def __init__(self, threads: int, queue_max: int, clock: Clock) -> None:
        """`threads` 0: one per core. `queue_max`: tasks waiting or running beyond the threads."""
        self.threads = threads or os.cpu_count() or 1
        self._clock = clock
        self._places = self.threads + queue_max
        self._taken = 0
        self._lock = threading.Lock()
        self._executor = ThreadPoolExecutor(
            self.threads, thread_name_prefix="search", initializer=faiss_index.use_one_thread
        )

    @property
    def idle(self) -> bool:
        """Nothing waits or runs."""
        return not self._taken

    async def run(self, work: Callable[[int], T], deadline: Deadline) -> T:
        """`work(queue wait in microseconds)` in a thread. Raises PoolFullError at once when the queue is full, and
        DeadlineExceeded instead of beginning late work."""
        with self._lock:
            if self._taken >= self._places:
                raise PoolFullError(f"{self._taken} searches wait or run")
            self._taken += 1
        queued_s = self._clock.monotonic_s()

        def begin() -> T:
            deadline.check("a search")
            return work(int((self._clock.monotonic_s() - queued_s) * 1e6))

        future = self._executor.submit(begin)
        future.add_done_callback(self._release)  # also when the caller went away: a running search keeps its place
        return await asyncio.wrap_future(future)

    def _release(self, _done: object) -> None:
        with self._lock:
            self._taken -= 1

    def close(self) -> None:
        """Wait for running work and drop what waits."""
        self._executor.shutdown(wait=True, cancel_futures=True)
