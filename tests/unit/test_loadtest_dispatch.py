"""The open loop, on a clock that only moves when told."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from loadtest.dispatch import CallResult, OpenLoop
from loadtest.samples import NOT_SENT, Sample
from loadtest.workload import Operation, PlannedCall


class Bench:
    """A loop over a pretended clock; spawned calls wait until the test lets them run."""

    def __init__(self, inflight_max: int = 100, sleep_adds_s: float = 0.0) -> None:
        self.time_s = 0.0
        self.waiting: list[Callable[[], None]] = []
        self.samples: list[Sample] = []
        self.performed: list[tuple[float, int]] = []
        self.sleep_adds_s = sleep_adds_s
        self.loop = OpenLoop(
            now=lambda: self.time_s,
            sleep=self.sleep,
            spawn=self.waiting.append,
            perform=self.perform,
            inflight_max=inflight_max,
            on_sample=self.samples.append,
        )

    def sleep(self, wait_s: float) -> None:
        assert wait_s > 0
        self.time_s += wait_s + self.sleep_adds_s

    def perform(self, call: PlannedCall) -> CallResult:
        self.performed.append((self.time_s, call.index))
        return CallResult("UNAVAILABLE" if call.index == 2 else "OK", trace_id=f"t{call.index}")


def calls(*times_s: float) -> list[PlannedCall]:
    return [PlannedCall(index, at, "burst", Operation.SEARCH, index) for index, at in enumerate(times_s)]


def test_unanswered_calls_delay_no_later_call() -> None:
    bench = Bench()
    bench.loop.run(calls(1.0, 2.0, 3.0))
    assert bench.time_s == 3.0
    assert len(bench.waiting) == 3
    assert bench.loop.inflight_peak == 3
    bench.time_s = 10.0
    for one in bench.waiting:
        one()
    assert bench.loop.inflight == 0
    assert [sample.latency_ms for sample in bench.samples][:2] == pytest.approx([9_000, 8_000])
    assert [sample.code for sample in bench.samples] == ["OK", "OK", "UNAVAILABLE"]
    assert [sample.trace_id for sample in bench.samples] == ["t0", "t1", "t2"]


def test_a_late_loop_sends_at_once_and_the_lag_is_recorded() -> None:
    bench = Bench(sleep_adds_s=0.5)
    bench.loop.run(calls(1.0, 1.1, 1.2))
    for one in bench.waiting:
        one()
    assert bench.time_s == 1.5
    assert [sample.lag_ms for sample in bench.samples] == pytest.approx([500, 400, 300])


def test_a_call_over_the_limit_is_recorded_as_not_sent() -> None:
    bench = Bench(inflight_max=2)
    bench.loop.run(calls(1.0, 2.0, 3.0, 4.0))
    assert len(bench.waiting) == 2
    assert [sample.code for sample in bench.samples] == [NOT_SENT, NOT_SENT]
    assert "2 calls in flight" in bench.samples[0].detail


def test_a_defect_in_a_call_frees_its_place() -> None:
    bench = Bench()

    def explode(call: PlannedCall) -> CallResult:
        raise RuntimeError(call.phase)

    bench.loop._perform = explode
    bench.loop.run(calls(1.0))
    with pytest.raises(RuntimeError):
        bench.waiting[0]()
    assert bench.loop.inflight == 0
