"""The open loop: send each call when it is due, whatever became of those before it.

The clock, the sleeping and the spawning are arguments, so the loop is tested without gevent and without waiting.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from loadtest.samples import NOT_SENT, OK, Sample
from loadtest.workload import PlannedCall


@dataclass(frozen=True, slots=True)
class CallResult:
    """How one call ended: a gRPC status name and, when the mesh told it, the trace to look at."""

    code: str = OK
    trace_id: str = ""
    detail: str = ""


class OpenLoop:
    """Sends the calls of one plan and keeps a sample of each.

    now: seconds since the run began. sleep: pauses the loop. spawn: runs a function concurrently.
    perform: makes one call and returns how it ended; it must not raise.
    """

    def __init__(
        self,
        *,
        now: Callable[[], float],
        sleep: Callable[[float], object],
        spawn: Callable[[Callable[[], None]], object],
        perform: Callable[[PlannedCall], CallResult],
        inflight_max: int,
        on_sample: Callable[[Sample], None],
    ) -> None:
        self._now = now
        self._sleep = sleep
        self._spawn = spawn
        self._perform = perform
        self._inflight_max = inflight_max
        self._on_sample = on_sample
        self.inflight = 0
        self.inflight_peak = 0

    def run(self, calls: Sequence[PlannedCall]) -> None:
        """Send every call at its time; returns when the last is sent, not when it is answered."""
        for call in calls:
            wait_s = call.intended_s - self._now()
            if wait_s > 0:
                self._sleep(wait_s)
            if self.inflight >= self._inflight_max:
                self._record(call, self._now(), CallResult(NOT_SENT, detail=f"{self.inflight} calls in flight"))
                continue
            self.inflight += 1
            self.inflight_peak = max(self.inflight_peak, self.inflight)
            self._spawn(partial(self._one, call))

    def _one(self, call: PlannedCall) -> None:
        sent_s = self._now()
        try:
            result = self._perform(call)
        finally:
            self.inflight -= 1
        self._record(call, sent_s, result)

    def _record(self, call: PlannedCall, sent_s: float, result: CallResult) -> None:
        self._on_sample(
            Sample(
                index=call.index,
                phase=call.phase,
                operation=call.operation,
                question=call.question,
                intended_s=call.intended_s,
                sent_s=sent_s,
                done_s=self._now(),
                code=result.code,
                trace_id=result.trace_id,
                detail=result.detail,
            )
        )
