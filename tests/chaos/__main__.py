"""`python -m tests.chaos --minutes 1 --seed N`: a mesh of real processes in network namespaces, disturbed under
traffic and judged by the simulation's checker; exit 1 on any problem.

The faults, their order and their targets follow from the seed; how processes interleave with them does not.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NoReturn

from tests.chaos import sandbox
from tests.chaos.run import SHOWN, run

PATIENCE_S = 30.0
"""After an interrupt, for stopping in order."""
INTERRUPTED = 130
SKIPPED = 77
"""Exit code where namespaces are not allowed."""


def main() -> int:
    """Parse arguments; run inside a sandbox."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument(
        "--volume",
        type=float,
        default=1.0,
        help="share of 5,000 rows and 5,000 searches in 3 minutes that must be had; below 1 time limits are not judged",
    )
    parser.add_argument("--inside", type=Path, default=None, help=argparse.SUPPRESS)
    args = parser.parse_args()
    seed = random.SystemRandom().randrange(1 << 32) if args.seed is None else args.seed
    if args.inside is not None:
        return _inside(args.inside, seed, args.minutes, args.volume)
    if why := sandbox.unavailable():
        print(f"chaos needs network namespaces of its own, and here: {why}")
        return SKIPPED
    return _outside(seed, args.minutes, args.volume)


def _outside(seed: int, minutes: float, volume: float) -> int:
    """Run the sandbox, and end it whatever ends this; its directory stays only when something was wrong."""
    directory = Path(tempfile.mkdtemp(prefix="ostraka-chaos-"))
    code = INTERRUPTED
    signal.signal(signal.SIGTERM, _terminated)
    arguments = ["--minutes", f"{minutes:g}", "--seed", f"{seed}", "--volume", f"{volume:g}"]
    child = sandbox.start_inside([sys.executable, "-m", "tests.chaos", *arguments, "--inside", str(directory)])
    try:
        code = child.wait()
    except KeyboardInterrupt:
        # The terminal has told the run, too, and it stops in order.
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(PATIENCE_S)
    finally:
        child.kill()
        child.wait()
        if code in (0, INTERRUPTED):
            shutil.rmtree(directory, ignore_errors=True)
        else:
            print(f"logs and databases are kept in {directory}")
    return code


def _inside(directory: Path, seed: int, minutes: float, volume: float) -> int:
    command = f"make chaos MINUTES={minutes:g} SEED={seed}"
    print(command, flush=True)
    try:
        outcome = asyncio.run(run(directory, seed, minutes, volume))
    except KeyboardInterrupt:
        return INTERRUPTED
    for line in outcome.figures:
        print(line)
    for problem in outcome.problems[:SHOWN]:
        print(problem)
    if outcome.problems:
        print(f"{len(outcome.problems)} problems; again: {command}")
    return 1 if outcome.problems else 0


def _terminated(*_: object) -> NoReturn:
    raise SystemExit(INTERRUPTED)


if __name__ == "__main__":
    raise SystemExit(main())
