"""The writer thread of a replica: one queue, group commit.

Writes that are waiting together are committed together, up to a number of rows and bytes; an idle queue is never
waited on. Everything else that must not run beside a write (merging a pull, publishing a segment, purging) is a job in
the same queue and runs alone.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from services.quorum.rows import WriteBatch
from services.quorum.status import ReplicaStatus
from services.runtime.clock import Clock

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class WriteReply:
    """What became of one batch; `status` OK means durable and visible."""

    status: ReplicaStatus
    hlc_max: int
    message: str = ""
    queue_wait_us: int = 0
    commit_us: int = 0


@dataclass(slots=True)
class PendingWrite:
    """A batch in the queue."""

    batch: WriteBatch
    epoch: int
    queued_s: float
    future: Future[WriteReply] = field(default_factory=Future)

    @property
    def rows(self) -> int:
        return len(self.batch.passages) + len(self.batch.heads)

    @property
    def bytes(self) -> int:
        return sum(len(row.vector) + len(row.payload) for row in self.batch.passages)


@dataclass(slots=True)
class _Job:
    run: Callable[[], Any]
    future: Future[Any]


class Writer:
    """Feeds groups of writes to `commit` and jobs to themselves, one after the other, in its own thread."""

    def __init__(
        self,
        name: str,
        commit: Callable[[Sequence[PendingWrite]], None],
        clock: Clock,
        *,
        rows_max: int,
        bytes_max: int,
        queue_max: int,
    ) -> None:
        """`commit` answers every future of its group. `queue_max`: writes waiting or under way."""
        self._commit = commit
        self._clock = clock
        self._rows_max = rows_max
        self._bytes_max = bytes_max
        self._queue_max = queue_max
        self._queue: SimpleQueue[PendingWrite | _Job | None] = SimpleQueue()
        self._waiting = 0
        self.idle = threading.Event()
        """Set while the thread waits for something to do."""
        self._lock = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=f"writer-{name}", daemon=True)
        self._thread.start()

    def write(self, batch: WriteBatch, epoch: int) -> Future[WriteReply] | None:
        """Queue a batch; None when the queue is full or closed, and then nothing was changed."""
        with self._lock:
            if self._closed or self._waiting >= self._queue_max:
                return None
            self._waiting += 1
            pending = PendingWrite(batch, epoch, self._clock.monotonic_s())
            self._queue.put(pending)
        return pending.future

    def run(self, job: Callable[[], T]) -> Future[T]:
        """Run `job` in the writer thread, between groups. Raises RuntimeError when closed."""
        future: Future[T] = Future()
        with self._lock:
            if self._closed:
                raise RuntimeError("the replica is closed")
            self._queue.put(_Job(job, future))
        return future

    def close(self) -> None:
        """Finish what is queued, then stop; returns when the thread has ended."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        try:
            self._serve()
        finally:
            self.idle.set()

    def _serve(self) -> None:
        carried: _Job | None = None
        while True:
            if carried is None and self._queue.empty():
                self.idle.set()
            item = carried or self._queue.get()
            self.idle.clear()
            carried = None
            if item is None:
                return
            if isinstance(item, _Job):
                _run_job(item)
                continue
            group, carried, ended = self._drain(item)
            started = [pending for pending in group if pending.future.set_running_or_notify_cancel()]
            if started:
                self._commit(started)
            with self._lock:
                self._waiting -= len(group)
            if ended:
                return

    def _drain(self, first: PendingWrite) -> tuple[list[PendingWrite], _Job | None, bool]:
        """(the group that begins with `first`, a job found behind it, whether the queue was closed behind it)"""
        group, rows, size = [first], first.rows, first.bytes
        while rows < self._rows_max and size < self._bytes_max:
            try:
                item = self._queue.get_nowait()
            except Empty:
                return group, None, False
            if item is None or isinstance(item, _Job):
                return group, item, item is None
            group.append(item)
            rows += item.rows
            size += item.bytes
        return group, None, False


def _run_job(job: _Job) -> None:
    if not job.future.set_running_or_notify_cancel():
        return
    try:
        job.future.set_result(job.run())
    except BaseException as error:
        # The future carries it to whoever asked; the thread must go on for the others.
        job.future.set_exception(error)
