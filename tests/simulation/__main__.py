"""`python -m tests.simulation --seeds 2000`, or one seed: `--seed 7 --config 3/2/2`."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections import Counter

from tests.simulation.cluster import CONFIGS, Result, run
from tests.simulation.mutants import MUTANTS


def main() -> int:
    """Exit code 1 when a promise was broken. An interrupt ends it early, with the figures of the seeds so far."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, help="run this seed only")
    parser.add_argument("--seeds", type=int, default=100, help="how many seeds, spread over the configurations")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--config", choices=CONFIGS, help="N/R/W; all in turn without it")
    parser.add_argument("--mutant", choices=sorted(MUTANTS), help="break the protocol on purpose")
    chosen = parser.parse_args()
    seeds = [chosen.seed] if chosen.seed is not None else range(chosen.first, chosen.first + chosen.seeds)
    parts = MUTANTS[chosen.mutant].parts if chosen.mutant else None
    results: list[Result] = []
    started = time.process_time()
    with contextlib.suppress(KeyboardInterrupt):
        for seed in seeds:
            result = run(seed, chosen.config or CONFIGS[seed % len(CONFIGS)], parts)
            results.append(result)
            if result.violations:
                print(f"{len(result.violations)} violations: {result.command()}", flush=True)
                for violation in result.violations[: 20 if chosen.seed is not None else 2]:
                    print(f"    {violation.check}: {violation.text}", flush=True)
    bad = [result for result in results if result.violations]
    checks = Counter(violation.check for result in results for violation in result.violations)
    print(
        f"{len(results)} seeds, {sum(result.searches for result in results)} searches, "
        f"{sum(result.acked for result in results)} acknowledged writes, "
        f"{sum(result.changes for result in results)} changes of members, {len(bad)} bad seeds, "
        f"violations {dict(sorted(checks.items()))}, {time.process_time() - started:.1f} s CPU"
    )
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
