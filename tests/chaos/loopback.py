"""`python -m tests.chaos.loopback --kills 10 --pauses 5 --seed N`: kill and stop nodes of a fresh mesh under traffic;
exit 1 on any problem.

Everything runs on loopback and callers may notice nothing; `python -m tests.chaos` does worse things to a mesh.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import tempfile
from pathlib import Path

from ostraka.client import ClientOptions
from ostraka.retry import RetryPolicy
from tests.chaos.kills import INFLIGHT_MIN, kill_and_heal
from tests.chaos.traffic import Traffic
from tests.mesh import Mesh, start_mesh

COLLECTION = "chaos"
DIM = 16
TABLE = f"""
[collections.{COLLECTION}]
shards = 2
replicas = 3
dim = {DIM}
embedding_model = "made-for-tests"
"""
WRITERS = 32
READERS = 40
TIMEOUT_S = 2.0
"""Of each call, its repetition included."""
ATTEMPTS_MAX = 2
"""A call and at most one repetition."""
PROBLEMS_SHOWN = 20


async def run(mesh: Mesh, *, kills: int, seed: int, pauses: int = 0) -> list[str]:
    """Everything that went wrong, in words; empty when nothing did."""
    print(f"python -m tests.chaos.loopback --kills {kills} --pauses {pauses} --seed {seed}")
    options = ClientOptions(timeout_s=TIMEOUT_S, retry=RetryPolicy(attempts_max=ATTEMPTS_MAX))
    client = mesh.client(COLLECTION, options=options)
    traffic = Traffic(client, dim=DIM, writers=WRITERS, readers=READERS, timeout_s=TIMEOUT_S, seed=seed)
    async with client, traffic:
        record = await kill_and_heal(mesh.supervisor, client, traffic, kills=kills, pauses=pauses, seed=seed)
        await traffic.verify_all()
    acknowledged = sum(traffic.register.acknowledged.values())
    print(f"{', '.join(record.nodes)}; in flight at each {record.inflight}")
    print(f"{record.calls:,} calls, {acknowledged:,} acknowledged writes, {len(traffic.problems)} problems")
    assert min(record.inflight) >= INFLIGHT_MIN
    return traffic.problems


def main() -> int:
    """Parse arguments, run, print what went wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.loopback", description=__doc__)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--pauses", type=int, default=0, help="how often a node is stopped (SIGSTOP) and let go on")
    parser.add_argument("--seed", type=int, default=None)
    args = parser.parse_args()
    seed = random.SystemRandom().randrange(1 << 32) if args.seed is None else args.seed
    with tempfile.TemporaryDirectory(prefix="ostraka-chaos-", ignore_cleanup_errors=True) as directory:
        mesh = start_mesh(Path(directory), TABLE)
        try:
            problems = asyncio.run(run(mesh, kills=args.kills, seed=seed, pauses=args.pauses))
        finally:
            mesh.supervisor.stop_all()
    for problem in problems[:PROBLEMS_SHOWN]:
        print(problem)
    return 1 if problems else 0


if __name__ == "__main__":
    raise SystemExit(main())
