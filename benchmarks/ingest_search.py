"""Searches of one replica, in process, while rows arrive: their p95 and p99 beside those of the same searches idle.

    python -m benchmarks.ingest_search [--rows 50000] [--rate 500] [--seconds 50] [--slice 5] [--dim 384] [--flush N]

Searches run in as many threads as there are cores, as in a node. The replica is filled until its delta is half full.
Capacity is measured first: each thread begins its next search as soon as one has ended, for ten seconds. Then open-loop
arrivals at 30 % of capacity run in short slices, idle and busy by turns (idle, busy, busy, idle, and again), the two of
a turn with the same arrivals and queries. In a busy slice batches of 50 rows arrive at the rate and upkeep flushes,
merges and checks; in an idle one no rows arrive and upkeep is held where it would next ask for CPU, a build under way
included, so the build goes on in the next busy slice. Thus a drift of the machine, the filling of the delta and the
number of segments hit both alike; --seconds is of each kind. Latency counts from the scheduled arrival, and a slice
ends when its last search is answered. After each acknowledgement a search for a row of the batch must find it.
Each turn waits, for --wait seconds at most, until other processes leave the machine alone; turns in which they used
more than a tenth of a core are left out of the figures and counted.
Codecs are trained as a node does, beside sealing and when the rule of their owner says so, which is while the replica
is filled and not in the span. Exits 1 when a row is not found, when the span held no flush or no merge, or when a
training would have fallen into it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.bulk import Rows, write
from benchmarks.owned_codec import OwnedCodec
from services.runtime.clock import SYSTEM_CLOCK
from services.runtime.config import ShardConfig
from services.shard import view_search
from services.shard.background import share_cores
from services.shard.cpu_budget import CpuBudget
from services.shard.engine import Engine
from services.shard.faiss_index import use_one_thread
from services.shard.upkeep import Upkeep

K = 10
BATCH = 50
LOAD = 0.3
CAPACITY_S = 10.0
SEED = 11
QUIET_CORES = 0.1
"""What others may use."""
SETTLE_S = 0.2
"""Between two slices: what asks for CPU every 20 ms has met the gate by then."""


class Gate:
    """Open while rows arrive. Whoever writes or builds passes through it."""

    def __init__(self) -> None:
        self._opened = threading.Event()

    def open(self) -> None:
        self._opened.set()

    def close(self) -> None:
        self._opened.clear()

    def wait(self) -> bool:
        """Until it is open; whether that took waiting."""
        waited = not self._opened.is_set()
        self._opened.wait()
        return waited


class HeldBudget(CpuBudget):
    """Background work that is held while the gate is closed."""

    def __init__(self, engine: Engine, gate: Gate) -> None:
        super().__init__(engine.config.background_cpu, give_way=engine.await_writer)
        self._gate = gate

    def pause(self, *, urgent: bool = False) -> None:
        super().pause(urgent=urgent)
        self._gate.wait()


class HeldUpkeep(Upkeep):
    """The same for what asks for no CPU, such as a checkpoint."""

    def __init__(self, engine: Engine, gate: Gate) -> None:
        super().__init__(engine, HeldBudget(engine, gate))
        self._gate = gate

    def step(self, tick: int) -> None:
        self._gate.wait()
        super().step(tick)


@dataclass(frozen=True, slots=True)
class Slice:
    """Seconds from each scheduled arrival to its answer, and how many cores others used meanwhile."""

    busy: bool
    times: NDArray[np.float64]
    foreign_cores: float


def main() -> None:
    """Fill a replica, search it idle and beside writes, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--rate", type=float, default=500.0, help="rows per second")
    parser.add_argument("--seconds", type=float, default=50.0, help="busy, and as many idle")
    parser.add_argument("--wait", type=float, default=20.0, help="seconds for other processes to end, before each turn")
    parser.add_argument("--slice", type=float, default=5.0, help="seconds of each slice, at most")
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--flush", type=int, default=ShardConfig().delta_rows_flush)
    parser.add_argument("--out", type=Path, default=Path("reports/ingest_search.json"))
    arguments = parser.parse_args()
    use_one_thread()
    share_cores()  # as a node does
    config = ShardConfig(disk_reserve_bytes=0, delta_rows_flush=arguments.flush)
    rows = Rows(arguments.dim, SEED)
    with tempfile.TemporaryDirectory() as directory:
        codec = OwnedCodec(Path(directory) / "codecs", arguments.dim, config)
        engine = Engine(Path(directory), "bench", 1, arguments.dim, config, SYSTEM_CLOCK, codecs=codec.store)
        report = _run(engine, codec, rows, arguments)
        engine.close()
    print(f"{'':>14} {'searches':>9} {'p50 ms':>8} {'p95 ms':>8} {'p99 ms':>8}")
    for name in ("idle", "beside writes"):
        line = report[name]
        print(f"{name:>14} {line['searches']:>9} {line['p50_ms']:>8.3f} {line['p95_ms']:>8.3f} {line['p99_ms']:>8.3f}")
    print(
        f"ratio of p95 {report['ratio']:.2f}, of p99 {report['ratio_p99']:.2f}; in the median turn "
        f"{report['ratio_turns']:.2f} and {report['ratio_p99_turns']:.2f}; "
        f"{report['offered_per_s']:.0f} searches/s; flushes {report['flushes']}, merges {report['merges']}; "
        f"{report['rows_written']} rows, not found at once: {report['missing']}; "
        f"{report['turns_quiet']} of {report['turns']} turns undisturbed"
    )
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if report["missing"]:
        sys.exit("an acknowledged row was not in the next search")
    if not report["flushes"] or not report["merges"]:
        sys.exit("the span held no flush or no merge: make it longer, or --flush smaller")
    if report["training_due"]:
        sys.exit(f"the codec would have been trained anew ({report['training_due']}): make the span shorter")


def _run(engine: Engine, codec: OwnedCodec, rows: Rows, arguments: argparse.Namespace) -> dict[str, Any]:
    """The arguments' rows, and more until the delta is half full, then the slices."""
    filled = _filled(engine, codec, rows, arguments.rows)
    queries = rows.queries(256)
    threads = os.cpu_count() or 1
    _await_quiet(arguments.wait)
    capacity = _capacity(engine, queries, threads)
    turns = max(1, math.ceil(arguments.seconds / arguments.slice))
    offered = LOAD * capacity
    gate = Gate()
    upkeep = HeldUpkeep(engine, gate)
    upkeep.start()
    writer = _Writes(engine, rows, filled, arguments.rate, upkeep.wake, gate)
    writer.start()
    slices: list[Slice] = []
    for turn in range(turns):
        gate.close()
        _await_quiet(arguments.wait)
        rng = np.random.default_rng((SEED, turn))
        arrivals = np.cumsum(rng.exponential(1 / offered, max(1, int(offered * arguments.seconds / turns))))
        for busy in (False, True) if turn % 2 == 0 else (True, False):
            slices.append(_slice(engine, queries, arrivals, threads, gate, busy=busy))
    gate.open()
    writer.stop()
    upkeep.stop()
    quiet = _quiet(slices)
    idle, busy_times = (
        np.concatenate([each.times for each in quiet or slices if each.busy is kind]) for kind in (False, True)
    )
    return {
        "rows": filled,
        "threads": threads,
        "rate": arguments.rate,
        "dim": rows.dim,
        "capacity_per_s": capacity,
        "offered_per_s": offered,
        "idle": _summary(idle),
        "beside writes": _summary(busy_times),
        "ratio": float(np.percentile(busy_times, 95) / np.percentile(idle, 95)),
        "ratio_p99": float(np.percentile(busy_times, 99) / np.percentile(idle, 99)),
        "ratio_turns": _median_ratio(quiet or slices, 95),
        "ratio_p99_turns": _median_ratio(quiet or slices, 99),
        "flushes": writer.flushes,
        "merges": writer.merges,
        "rows_written": writer.written,
        "missing": writer.missing,
        "turns": turns,
        "turns_quiet": len(quiet) // 2,
        "slices": [{"busy": each.busy, "foreign_cores": each.foreign_cores, **_summary(each.times)} for each in slices],
        "training_due": codec.reason(engine.view.rows_live),
    }


def _filled(engine: Engine, codec: OwnedCodec, rows: Rows, count: int) -> int:
    """Write `count` rows, and more until the delta is half full; how many."""
    upkeep, filled = Upkeep(engine), 0
    while filled < count or engine.view.delta.live < engine.config.delta_rows_flush // 2:
        write(engine, rows, filled, BATCH)
        filled += BATCH
        if engine.view.delta.live >= engine.config.delta_rows_flush:
            codec.train_if_due(engine)
            upkeep.step(1)
    upkeep.stop()
    return filled


def _slice(
    engine: Engine,
    queries: NDArray[np.float32],
    arrivals: NDArray[np.float64],
    threads: int,
    gate: Gate,
    *,
    busy: bool,
) -> Slice:
    if busy:
        gate.open()
    else:
        gate.close()
    time.sleep(SETTLE_S)
    began, foreign = time.perf_counter(), _foreign_cpu_s()
    times = _searched(engine, queries, arrivals, threads)
    return Slice(busy, times, (_foreign_cpu_s() - foreign) / (time.perf_counter() - began))


def _quiet(slices: list[Slice]) -> list[Slice]:
    """Those of turns that others left alone in both of their slices."""
    turns = zip(slices[::2], slices[1::2], strict=True)
    return [each for turn in turns if max(half.foreign_cores for half in turn) <= QUIET_CORES for each in turn]


def _median_ratio(slices: list[Slice], percent: float) -> float:
    """Over turns, of a percentile of the busy slice beside that of the idle one: one bad moment is one turn's."""
    ratios = []
    for turn in zip(slices[::2], slices[1::2], strict=True):
        value = {half.busy: float(np.percentile(half.times, percent)) for half in turn}
        ratios.append(value[True] / value[False])
    return float(np.median(ratios))


def _await_quiet(wait_s: float) -> None:
    """Until others have used little for a second, or `wait_s` have passed."""
    end = time.perf_counter() + wait_s
    while (began := time.perf_counter()) < end:
        foreign = _foreign_cpu_s()
        time.sleep(1.0)
        if (_foreign_cpu_s() - foreign) / (time.perf_counter() - began) <= QUIET_CORES:
            return


def _foreign_cpu_s() -> float:
    """CPU seconds that the machine has spent on anything but this process, what a hypervisor took included."""
    user, nice, system, _, _, irq, softirq, steal = (
        int(word) for word in Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:9]
    )
    used = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
    return used - time.process_time()


def _capacity(engine: Engine, queries: NDArray[np.float32], threads: int) -> float:
    """Searches per second when every thread begins its next search as soon as one has ended."""
    began = time.perf_counter()

    def searches(first: int) -> int:
        done = 0
        while time.perf_counter() - began < CAPACITY_S:
            _search(engine, queries, first + done)
            done += 1
        return done

    with ThreadPoolExecutor(threads, initializer=use_one_thread) as pool:
        total = sum(pool.map(searches, range(threads)))
    return total / (time.perf_counter() - began)


def _search(engine: Engine, queries: NDArray[np.float32], number: int) -> None:
    view_search.search(engine.view, queries[number % len(queries)][None, :], K, exact=False)


class _Writes(threading.Thread):
    """Rows at a rate while the gate is open; after each batch a search for its last row."""

    def __init__(
        self, engine: Engine, rows: Rows, first: int, rate: float, wake: Callable[[], None], gate: Gate
    ) -> None:
        super().__init__(name="writes", daemon=True)
        self._engine, self._rows, self._next, self._rate, self._wake = engine, rows, first, rate, wake
        self._gate = gate
        self._parts = {part.segment.name for part in engine.view.parts}
        self._stopped = threading.Event()
        self.written = self.missing = self.flushes = self.merges = 0

    def stop(self) -> None:
        """Returns when the thread has ended."""
        self._stopped.set()
        self.join()

    def run(self) -> None:
        use_one_thread()
        due = time.perf_counter()
        while not self._stopped.wait(max(0.0, due - time.perf_counter())):
            if self._gate.wait():
                due = time.perf_counter()
            due += BATCH / self._rate
            vectors = write(self._engine, self._rows, self._next, BATCH)
            self._next += BATCH
            self.written += BATCH
            query = vectors[-1:].astype(np.float32)
            found = view_search.search(self._engine.view, query, 1, exact=False)[0]
            self.missing += not (len(found.scores) and found.scores[0] >= float(query[0] @ query[0]) - 1e-4)
            self._wake()
            self._count()

    def _count(self) -> None:
        parts = {part.segment.name for part in self._engine.view.parts}
        gone = self._parts - parts
        self.merges += bool(gone)
        self.flushes += len(parts - self._parts) > bool(gone)
        self._parts = parts


def _searched(
    engine: Engine, queries: NDArray[np.float32], arrivals: NDArray[np.float64], threads: int
) -> NDArray[np.float64]:
    """Seconds from each scheduled arrival to its answer. The threads of a node's pool take them in their order."""
    times = np.empty(len(arrivals))
    numbers = itertools.count()
    origin = time.perf_counter()

    def serve() -> None:
        while (number := next(numbers)) < len(arrivals):
            due = origin + float(arrivals[number])
            time.sleep(max(0.0, due - time.perf_counter()))
            _search(engine, queries, number)
            times[number] = time.perf_counter() - due

    with ThreadPoolExecutor(threads, initializer=use_one_thread) as pool:
        for served in [pool.submit(serve) for _ in range(threads)]:
            served.result()
    return times


def _summary(times: NDArray[np.float64]) -> dict[str, float]:
    p50, p95, p99 = (float(value) * 1e3 for value in np.percentile(times, [50, 95, 99]))
    return {"searches": len(times), "p50_ms": p50, "p95_ms": p95, "p99_ms": p99}


if __name__ == "__main__":
    main()
