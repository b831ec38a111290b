"""Filtered search of one replica, in process, at every selectivity, beside the same search without a filter.

    python -m benchmarks.filters [--rows 100000] [--queries 100] [--out reports/filters.json]

Synthetic clustered vectors with a uniformly drawn integer of 0 to 999,999, so that a range of it has any selectivity;
rows sealed into segments, a tenth updated afterwards, the newest in the delta. Per selectivity: how long the first
search of a filter takes, the p50 of later ones and their ratio to no filter, the fewest hits of any query, and
recall@10 against exhaustive search under the same filter. Exits 1 when a query has fewer hits than min(10, matching).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ostraka.v1 import passage_pb2
from services.quorum.clock import Version, pack
from services.quorum.gtid import Gtid
from services.quorum.rows import HeadRow, PassageRow, WriteBatch
from services.runtime.clock import SYSTEM_CLOCK
from services.runtime.conditions import Between, Condition
from services.runtime.config import ShardConfig
from services.shard import search
from services.shard.engine import Engine
from services.shard.faiss_index import use_one_thread
from services.shard.upkeep import Upkeep

DIM = 64
K = 10
DRAWN_BELOW = 1_000_000
SELECTIVITIES = (0.00001, 0.0001, 0.001, 0.01, 0.1, 0.5, 0.9, 1.0)
CLUSTERS = 500
BATCH = 250
SEED = 7


@dataclass(frozen=True, slots=True)
class Measured:
    """One selectivity; times in milliseconds, of one query."""

    selectivity: float
    matching: int
    first_ms: float
    p50_ms: float
    ratio: float
    """Of p50 to the p50 without a filter, in this run."""
    hits_least: int
    recall: float


def main() -> None:
    """Fill a replica, search it, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--out", type=Path, default=Path("reports/filters.json"))
    arguments = parser.parse_args()
    use_one_thread()
    rng = np.random.default_rng(SEED)
    centres = rng.standard_normal((CLUSTERS, DIM))
    with tempfile.TemporaryDirectory() as directory:
        engine = Engine(Path(directory), "bench", 1, DIM, ShardConfig(), SYSTEM_CLOCK, metadata={"drawn": "integer"})
        try:
            took_s = _fill(engine, arguments.rows, rng, centres)
            report = _measure(engine, _unit(arguments.queries, rng, centres))
        finally:
            engine.close()
    rows = arguments.rows
    print(f"{rows:,} rows of {DIM} dimensions, seed {SEED}; written and sealed in {took_s:.0f} s")
    print(f"no filter: p50 {report[0]:.3f} ms")
    print(
        f"{'selectivity':>11} {'matching':>9} {'first ms':>9} {'p50 ms':>8} {'ratio':>6} {'hits':>5} {'recall@10':>9}"
    )
    for line in report[1]:
        print(
            f"{line.selectivity:>11g} {line.matching:>9,} {line.first_ms:>9.2f} {line.p50_ms:>8.3f} "
            f"{line.ratio:>6.2f} {line.hits_least:>5} {line.recall:>9.4f}"
        )
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "rows": rows,
        "dim": DIM,
        "seed": SEED,
        "no_filter_p50_ms": report[0],
        "filters": list(map(asdict, report[1])),
    }
    arguments.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    if any(line.hits_least < min(K, line.matching) for line in report[1]):
        sys.exit("a query has fewer hits than rows match")


def _fill(engine: Engine, rows: int, rng: np.random.Generator, centres: NDArray[np.float64]) -> float:
    """Documents of one passage, then new versions of every tenth; seconds."""
    began = time.perf_counter()
    upkeep = Upkeep(engine)
    numbers = [*range(rows), *range(0, rows, 10)]
    for step, start in enumerate(range(0, len(numbers), BATCH), start=1):
        chosen = numbers[start : start + BATCH]
        vectors = _unit(len(chosen), rng, centres).astype("<f2")
        drawn = rng.integers(0, DRAWN_BELOW, len(chosen))
        version = Version(pack(SYSTEM_CLOCK.wall_ms(), step % 65_536), 1)
        passages, heads = [], []
        for number, vector, value in zip(chosen, vectors, drawn, strict=True):
            passage = passage_pb2.Passage(text="t", source="bench")
            passage.metadata["drawn"].integer = int(value)
            passages.append(PassageRow(f"d{number}", 0, version, vector.tobytes(), passage.SerializeToString()))
            heads.append(HeadRow(f"d{number}", 1, version))
        written = engine.write(WriteBatch(Gtid(1, step), version, tuple(passages), tuple(heads)), 1)
        assert written is not None, "one batch at a time fits into the queue"
        reply = written.result()
        assert reply.status.name == "OK", reply
        if engine.view.delta.live >= 8 * engine.config.delta_rows_flush:
            upkeep.step(1)
    return time.perf_counter() - began


def _measure(engine: Engine, queries: NDArray[np.float32]) -> tuple[float, list[Measured]]:
    """(p50 without a filter in milliseconds, one line per selectivity)"""
    base = float(np.median([_timed(engine, query, None)[0] for query in queries]))
    lines = []
    for selectivity in SELECTIVITIES:
        width = int(selectivity * DRAWN_BELOW)
        condition = Between("drawn", 0, max(0, width - 1))
        first_ms, _, matching = _timed(engine, queries[0], condition)
        times, hits, recalls = [], [], []
        for query in queries:
            took_ms, found, _ = _timed(engine, query, condition)
            _, exact, _ = _timed(engine, query, condition, exact=True)
            times.append(took_ms)
            hits.append(len(found))
            recalls.append(len(found & exact) / len(exact) if exact else 1.0)
        p50 = float(np.median(times))
        lines.append(Measured(selectivity, matching, first_ms, p50, p50 / base, min(hits), float(np.mean(recalls))))
    return base, lines


def _timed(
    engine: Engine, query: NDArray[np.float32], condition: Condition | None, *, exact: bool = False
) -> tuple[float, set[str], int]:
    """(milliseconds, documents found, rows matching) of one search as the service does it."""
    task = search.SearchTask(query[None, :], K, exact, True, condition)
    began = time.perf_counter()
    view = search.narrowed(engine.view, engine.readers, task, engine.filters)
    (result,) = search.run(view, engine.readers, task, engine.filters)
    took_ms = (time.perf_counter() - began) * 1_000
    return took_ms, {hit.document_id for hit in result.hits}, view.rows_live


def _unit(count: int, rng: np.random.Generator, centres: NDArray[np.float64]) -> NDArray[np.float32]:
    rows = centres[rng.integers(0, len(centres), count)] + 0.7 * rng.standard_normal((count, DIM))
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), dtype=np.float32)


if __name__ == "__main__":
    main()
