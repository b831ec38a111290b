"""Background work of one replica, in one thread: seal, checkpoint, purge, look for space on a full disk."""

from __future__ import annotations

import threading

from observability.logs import logger
from services.shard import heap, sealing
from services.shard.cpu_budget import CpuBudget, StoppedError
from services.shard.engine import Engine, ReplicaFailedError
from services.shard.scrub import Scrub
from services.shard.segment import SegmentDamagedError
from services.shard.store import StoreError, StoreFullError

TICK_S = 1.0
LOG_BYTES_CHECKPOINT = 4 * 1024 * 1024
PURGE_TICKS = 10
BACKOFF_TICKS = 30
"""After a build failed, ticks until the next attempt."""
_LOG = logger("shard")


class Upkeep:
    """The thread. `wake()` after a commit that may have filled the delta."""

    def __init__(self, engine: Engine, budget: CpuBudget | None = None) -> None:
        """`budget`: what builds and checks ask; None: one of `shard.background_cpu`."""
        self._engine = engine
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._backoff = 0
        self._checkpointed = -1
        self._budget = budget or CpuBudget(engine.config.background_cpu, give_way=engine.await_writer)
        self.scrub = Scrub(engine, self._budget.pause)
        self.builds = 0
        """Segments built since the start."""
        self.building = ""
        """What is being built now, in words."""
        self._tidied = 0
        self._thread = threading.Thread(target=self._run, name=f"upkeep-{engine.replica_id[:8]}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        """Look at the view now if its delta is full; everything else waits for the next tick."""
        if self._engine.view.delta.live >= self._engine.config.delta_rows_flush:
            self._wake.set()

    def stop(self) -> None:
        """Stop after the step under way; returns when the thread has ended."""
        self._stop.set()
        self._budget.stop()
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join()
        self.scrub.close()

    def _run(self) -> None:
        tick = 0
        while not self._stop.is_set():
            self._wake.wait(TICK_S)
            self._wake.clear()
            tick += 1
            if self._stop.is_set() or self._engine.failure:
                continue
            try:
                self.step(tick)
            except Exception as error:
                # A defect in background work must end neither the thread nor the process.
                self._backoff = BACKOFF_TICKS
                _LOG.exception("upkeep failed", error, replica=self._engine.replica_id)

    def step(self, tick: int) -> None:
        """One round of everything that is due."""
        try:
            if self._engine.read_only:
                self._engine.probe().result()
            self.scrub.discard_damaged()
            if self._tidied != self.builds:
                self._tidied = self.builds
                heap.give_back()  # searches have let go by now of what the last build replaced
            self._seal()
            number = self._engine.view.number
            if number != self._checkpointed and self._engine.log_bytes() > LOG_BYTES_CHECKPOINT:
                self._engine.checkpoint()
                self._checkpointed = number
            if tick % PURGE_TICKS == 0:
                self._purge()
            self._budget.begin()
            self.scrub.step()
        except StoppedError:
            return
        except (StoreError, ReplicaFailedError, OSError) as error:
            self._engine.note_failure(error)
            self._backoff = BACKOFF_TICKS
            _LOG.warning("upkeep failed; it is tried again", replica=self._engine.replica_id, reason=str(error))

    def _seal(self) -> None:
        if self._backoff:
            self._backoff -= 1
            return
        while not self._stop.is_set():
            sealing_due = sealing.due_for(self._engine)
            if sealing_due is None:
                return
            self.building = f"{len(sealing_due.rids)} rows in place of {len(sealing_due.replaced)} segments"
            try:
                self.builds += sealing.build_and_publish(self._engine, sealing_due, self._budget)
            except SegmentDamagedError as error:
                self._engine.ledger.add_part(error.segment, str(error))  # discarded in the next round
                return
            except StoppedError:
                return
            finally:
                self.building = ""

    def _purge(self) -> None:
        try:
            while self._engine.purge().result() and not self._stop.is_set():
                continue
        except StoreFullError as error:
            _LOG.warning("no space to purge", replica=self._engine.replica_id, reason=str(error))
