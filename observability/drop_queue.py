"""A bounded queue with one background thread: offering never blocks, what does not fit is dropped and counted."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class DropQueue(Generic[T]):
    """Hands items in batches to `consume` on a thread of its own.

    `consume` gets 1 to `batch_max` items, at the latest `interval_s` after the first was offered. When it
    raises, the batch counts as dropped and the queue goes on.
    """

    def __init__(
        self, name: str, consume: Callable[[list[T]], None], *, items_max: int, batch_max: int, interval_s: float
    ) -> None:
        self._consume = consume
        self._items: deque[T] = deque()
        self._items_max, self._batch_max, self._interval_s = items_max, batch_max, interval_s
        self._lock = threading.Lock()
        self._wake, self._idle = threading.Event(), threading.Condition(self._lock)
        self._busy = self._closed = False
        self._dropped = 0
        self.last_error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def dropped(self) -> int:
        """Items that were never consumed."""
        return self._dropped

    def offer(self, item: T) -> bool:
        """Queue `item`; False when it was dropped because the queue is full or closed."""
        with self._lock:
            if self._closed or len(self._items) >= self._items_max:
                self._dropped += 1
                return False
            self._items.append(item)
            if len(self._items) >= self._batch_max:
                self._wake.set()
            return True

    def flush(self, timeout_s: float) -> bool:
        """Wait until everything offered before was consumed; False when that took longer than `timeout_s`."""
        self._wake.set()
        with self._idle:
            return self._idle.wait_for(lambda: not self._items and not self._busy, timeout_s)

    def close(self, timeout_s: float) -> bool:
        """Refuse new items, consume what is left, end the thread.

        False when `timeout_s` did not suffice: what is still queued then counts as dropped.
        """
        with self._lock:
            self._closed = True
        self._wake.set()
        self._thread.join(timeout_s)
        if not self._thread.is_alive():
            return True
        with self._lock:
            self._dropped += len(self._items)
            self._items.clear()
        return False

    def _run(self) -> None:
        while True:
            self._wake.wait(self._interval_s)
            self._wake.clear()
            while batch := self._take():
                try:
                    self._consume(batch)
                except Exception as error:
                    # Whatever a consumer meets (a full disk, a collector gone) must not end the thread.
                    with self._lock:
                        self._dropped += len(batch)
                        self.last_error = error
            with self._idle:
                self._busy = False
                self._idle.notify_all()
                if self._closed and not self._items:
                    return

    def _take(self) -> list[T]:
        with self._lock:
            self._busy = bool(self._items)
            return [self._items.popleft() for _ in range(min(self._batch_max, len(self._items)))]
