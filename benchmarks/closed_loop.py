"""Throughput at a fixed concurrency: as many calls as the other side allows, each worker waiting for its answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from statistics import median

from loadtest.samples import percentile


@dataclass(frozen=True, slots=True)
class Throughput:
    """Several rounds of one thing measured."""

    rates_per_s: tuple[float, ...]
    latencies_ms: tuple[float, ...]

    @property
    def rate_per_s(self) -> float:
        """The median round."""
        return median(self.rates_per_s)

    def latency_ms(self, percent: float) -> float:
        return percentile(self.latencies_ms, percent)


Call = Callable[[], Awaitable[object]]


async def compare(calls: dict[str, Call], *, concurrency: int, seconds: float, rounds: int) -> dict[str, Throughput]:
    """Measure each call in turn, `rounds` times over, so that a machine that slows down slows all of them.

    The first, unmeasured round is a fifth as long. Whatever a call raises ends the measurement.
    """
    rates: dict[str, list[float]] = {name: [] for name in calls}
    latencies: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        await _round(call, concurrency, seconds / 5)
    for _ in range(rounds):
        for name, call in calls.items():
            rate, found = await _round(call, concurrency, seconds)
            rates[name].append(rate)
            latencies[name] += found
    return {name: Throughput(tuple(rates[name]), tuple(latencies[name])) for name in calls}


async def _round(call: Call, concurrency: int, seconds: float) -> tuple[float, list[float]]:
    latencies_ms: list[float] = []
    began_s = time.perf_counter()
    until_s = began_s + seconds

    async def worker() -> None:
        while (sent_s := time.perf_counter()) < until_s:
            await call()
            latencies_ms.append((time.perf_counter() - sent_s) * 1e3)

    async with asyncio.TaskGroup() as group:
        for _ in range(concurrency):
            group.create_task(worker())
    return len(latencies_ms) / (time.perf_counter() - began_s), latencies_ms
