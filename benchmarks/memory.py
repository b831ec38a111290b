"""What a row costs in anonymous memory, and how long a restart takes.

    python -m benchmarks.memory [--rows 1000000] [--dim 384] [--flush 65536]

Synthetic clustered rows through the replica's real write path, upkeep flushing and merging between batches without a
limit on its CPU time. Growth is the anonymous resident memory of this process at rest minus that before the first row;
the restart is the time until the view of a closed replica is loaded again in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.bulk import Rows, write
from services.runtime.clock import SYSTEM_CLOCK
from services.runtime.config import ShardConfig
from services.shard.engine import Engine
from services.shard.faiss_index import use_one_thread
from services.shard.upkeep import Upkeep

BATCH = 250
SEED = 13
TARGET_BYTES = 128
TARGET_S = 5.0


def main() -> None:
    """Fill a replica, measure, restart it, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--flush", type=int, default=65_536)
    parser.add_argument("--out", type=Path, default=Path("reports/memory.json"))
    parser.add_argument("--open", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    use_one_thread()
    config = ShardConfig(disk_reserve_bytes=0, delta_rows_flush=arguments.flush, background_cpu=1.0)
    if arguments.open:
        began = time.perf_counter()
        before = anonymous_bytes()
        engine = Engine(arguments.open, "bench", 1, arguments.dim, config, SYSTEM_CLOCK)
        took_s = time.perf_counter() - began
        print(json.dumps({"s": took_s, "rows": engine.view.rows_live, "bytes": anonymous_bytes() - before}))
        engine.close()
        return
    with tempfile.TemporaryDirectory() as directory:
        report = _run(Path(directory), arguments.rows, arguments.dim, config)
    print(f"{'rows':>10} {'bytes/row':>10} {'after restart':>14} {'restart s':>10} {'segments':>9}")
    print(
        f"{report['rows']:>10,} {report['bytes_per_row']:>10.1f} {report['bytes_per_row_restarted']:>14.1f} "
        f"{report['restart_s']:>10.2f} {report['segments']:>9}"
    )
    print(f"targets: {TARGET_BYTES} bytes per row, {TARGET_S} s")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def anonymous_bytes() -> int:
    """Resident memory of this process that no file backs."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))


def _run(directory: Path, count: int, dim: int, config: ShardConfig) -> dict[str, float]:
    engine = Engine(directory, "bench", 1, dim, config, SYSTEM_CLOCK)
    rows, upkeep = Rows(dim, SEED), Upkeep(engine)
    before = anonymous_bytes()
    began = time.perf_counter()
    for start in range(0, count, BATCH):
        write(engine, rows, start, min(BATCH, count - start))
        if engine.view.delta.live >= config.delta_rows_flush:
            upkeep.step(1)
    upkeep.step(1)
    grown = anonymous_bytes() - before
    filled_s = time.perf_counter() - began
    segments, delta = len(engine.view.parts), engine.view.delta.live
    upkeep.stop()
    engine.close()
    command = [sys.executable, "-m", "benchmarks.memory", "--open", str(directory)]
    command += ["--dim", str(dim), "--flush", str(config.delta_rows_flush)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603 # this very module
    opened = json.loads(done.stdout.splitlines()[-1])
    assert opened["rows"] == count, opened
    return {
        "rows": count,
        "dim": dim,
        "bytes_per_row": grown / count,
        "bytes_per_row_restarted": opened["bytes"] / count,
        "restart_s": opened["s"],
        "segments": segments,
        "delta_rows": delta,
        "fill_s": filled_s,
    }


if __name__ == "__main__":
    main()
