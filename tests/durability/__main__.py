"""`python -m tests.durability --crashes 200 --seed N`: power failures at every point; exit 1 on any loss."""

from __future__ import annotations

import argparse
import random
import tempfile
from pathlib import Path

from tests.durability.crashes import crash_often

HITS_MIN = 5
"""Of each point, in a run of the size that is meant to be run by hand."""
BY_HAND = 200


def main() -> int:
    """Parse arguments, run, print the table and what went wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.durability", description=__doc__)
    parser.add_argument("--crashes", type=int, default=BY_HAND)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--keep", type=Path, default=None, help="directory for the images that went wrong")
    args = parser.parse_args()
    seed = random.SystemRandom().randrange(1 << 32) if args.seed is None else args.seed
    by_hand = args.crashes >= BY_HAND
    print(f"python -m tests.durability --crashes {args.crashes} --seed {seed}")
    with tempfile.TemporaryDirectory(prefix="ostraka-durability-") as directory:
        record = crash_often(args.keep or Path(directory), args.crashes, seed, HITS_MIN if by_hand else 1)
    print(record.table())
    rare = sorted(point for point, hits in record.hits.items() if hits < HITS_MIN)
    print(f"{record.crashes} crashes at {len(record.hits)} points, {len(record.problems)} problems")
    if by_hand and rare:
        record.problems.append(f"hit fewer than {HITS_MIN} times: {', '.join(rare)}")
    for problem in record.problems:
        print(problem)
    return 1 if record.problems else 0


if __name__ == "__main__":
    raise SystemExit(main())
