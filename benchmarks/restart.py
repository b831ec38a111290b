"""How long a replica takes from its files to a view that can be searched, in process.

    python -m benchmarks.restart [--rows 1000000] [--dim 384] [--flush 8192] [--keep DIRECTORY] [--out FILE]

Synthetic unit vectors in documents of ten passages, written through the engine and sealed by its upkeep; a twentieth
of the documents is updated and a twentieth deleted afterwards, and what upkeep has not sealed stays in the delta. The
replica is then closed and opened several times: once after asking the kernel to forget its files, then warm. Nothing
may be different afterwards. `--keep` writes into a directory, or measures what an earlier run left there.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ostraka.v1 import passage_pb2
from services.quorum.clock import Version, pack
from services.quorum.gtid import Gtid
from services.quorum.rows import HeadRow, PassageRow, WriteBatch
from services.runtime.clock import SYSTEM_CLOCK
from services.runtime.config import ShardConfig
from services.shard.engine import Engine
from services.shard.upkeep import Upkeep

LIMIT_S = 5.0
PASSAGES = 10
DOCUMENTS_PER_BATCH = 25
BATCHES_PER_ROUND = 40
WARM = 3
SEED = 11
_WORDS = [f"word{number}" for number in range(5_000)]


@dataclass(frozen=True, slots=True)
class Opened:
    """One start."""

    seconds: float
    rows_live: int
    delta_rows: int
    segments: int
    applied: str
    digest: str


def main() -> None:
    """Fill a replica unless it is there, open it again and again, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--flush", type=int, default=ShardConfig().delta_rows_flush)
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--out", type=Path, default=Path("reports/restart.json"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        directory = arguments.keep or Path(made)
        directory.mkdir(parents=True, exist_ok=True)
        filled_s = 0.0
        if not (directory / "replica.db").exists():
            filled_s = _fill(directory, arguments.rows, arguments.dim, ShardConfig(delta_rows_flush=arguments.flush))
        size = _forget(directory)
        runs = [_open(directory, arguments.dim) for _ in range(1 + WARM)]
    cold, *warm = runs
    same = all((run.rows_live, run.applied, run.digest) == (cold.rows_live, cold.applied, cold.digest) for run in warm)
    fastest = min(run.seconds for run in warm)
    print(
        f"{cold.rows_live:,} live rows of {arguments.dim} dimensions, {size / 1e9:.2f} GB, filled in {filled_s:.0f} s"
    )
    print(f"{cold.segments} segments, {cold.delta_rows:,} rows in the delta")
    print(f"{'start':>12} {'seconds':>9} {'of limit':>9}")
    for name, seconds in (("cold", cold.seconds), ("warm, best", fastest)):
        print(f"{name:>12} {seconds:9.2f} {seconds / LIMIT_S:9.2f}")
    report = {"rows": arguments.rows, "dim": arguments.dim, "bytes": size, "runs": [asdict(run) for run in runs]}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=1))
    if not same:
        sys.exit("the replica is not the same after every start")


def _fill(directory: Path, rows: int, dim: int, config: ShardConfig) -> float:
    """Write, update and delete; returns the seconds it took."""
    began = time.perf_counter()
    rng = np.random.default_rng(SEED)
    engine = Engine(directory, "bench", 1, dim, config, SYSTEM_CLOCK)
    upkeep = Upkeep(engine)
    documents = rows // PASSAGES
    changed = rng.choice(documents, documents // 10, replace=False)
    updated, deleted = changed[::2], changed[1::2]
    work = [(f"doc/{number}", PASSAGES) for number in range(documents)]
    work += [(f"doc/{number}", PASSAGES) for number in updated] + [(f"doc/{number}", 0) for number in deleted]
    step = 0
    per_round = DOCUMENTS_PER_BATCH * BATCHES_PER_ROUND
    for start in range(0, len(work), per_round):
        futures = []
        for first in range(start, min(start + per_round, len(work)), DOCUMENTS_PER_BATCH):
            step += 1
            batch = _batch(step, work[first : first + DOCUMENTS_PER_BATCH], dim, rng)
            futures.append(engine.write(batch, 1))
        for future in futures:
            assert future is not None, "the queue holds a round"
            reply = future.result()
            assert reply.status.name == "OK", reply
        upkeep.step(step)
    upkeep.stop()
    engine.checkpoint()
    engine.close()
    return time.perf_counter() - began


def _batch(step: int, documents: list[tuple[str, int]], dim: int, rng: np.random.Generator) -> WriteBatch:
    at = Version(pack(SYSTEM_CLOCK.wall_ms(), step & 0xFFFF), 1)
    count = sum(passages for _, passages in documents)
    vectors = rng.standard_normal((count, dim)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    halves = iter(vectors.astype("<f2"))
    rows = [
        PassageRow(document_id, ordinal, at, next(halves).tobytes(), _payload(document_id, ordinal, rng))
        for document_id, passages in documents
        for ordinal in range(passages)
    ]
    heads = [HeadRow(document_id, passages, at) for document_id, passages in documents]
    return WriteBatch(Gtid(1, step), at, tuple(rows), tuple(heads))


def _payload(document_id: str, ordinal: int, rng: np.random.Generator) -> bytes:
    text = " ".join(_WORDS[number] for number in rng.integers(0, len(_WORDS), 30))
    return passage_pb2.Passage(document_id=document_id, ordinal=ordinal, text=text).SerializeToString()


def _forget(directory: Path) -> int:
    """Ask the kernel to drop the files from its cache; returns their bytes."""
    os.sync()
    size = 0
    for path in directory.rglob("*"):
        if path.is_file():
            size += path.stat().st_size
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return size


def _open(directory: Path, dim: int) -> Opened:
    began = time.perf_counter()
    engine = Engine(directory, "bench", 1, dim, ShardConfig(), SYSTEM_CLOCK)
    seconds = time.perf_counter() - began
    view = engine.view
    engine.close()
    return Opened(
        seconds, view.rows_live, view.delta.live, len(view.parts), view.applied.digest().hex(), view.digest_bytes.hex()
    )


if __name__ == "__main__":
    main()
