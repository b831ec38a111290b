"""`python -m tests.simulation.read_rules --seeds 200`: the tables on standard output, document and plot into docs."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tests.simulation.read_rules.plot import draw
from tests.simulation.read_rules.report import document, faults_table, ingest_table
from tests.simulation.read_rules.tally import Faults, compare_under_faults, compare_under_ingest

CONFIGS = ("3/2/2", "5/3/3")
"""With R = 1 the rules are one."""
DOCS = Path(__file__).resolve().parents[3] / "docs"
INGEST_SECONDS = 20
PROGRESS_SEEDS = 25


def main() -> int:
    """Compare, print, write."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.read_rules", description=__doc__)
    parser.add_argument("--seeds", type=_positive, default=200, help="schedules for each configuration")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--ingest-seconds", type=_positive, default=INGEST_SECONDS, help="simulated, for each rate")
    parser.add_argument("--docs", type=Path, default=DOCS, help="the folder to write to")
    chosen = parser.parse_args()
    seeds = range(chosen.first, chosen.first + chosen.seeds)
    faults = [_under_faults(seeds, config) for config in CONFIGS]
    ingest = list(compare_under_ingest(chosen.ingest_seconds))
    print(f"\nwithout faults\n{ingest_table(ingest)}")
    chosen.docs.mkdir(parents=True, exist_ok=True)
    text = document(_command(chosen), f"{seeds[0]} to {seeds[-1]}", faults, ingest)
    (chosen.docs / "read-rules.md").write_text(text, encoding="utf-8")
    draw(chosen.docs / "read-rules.svg", faults[0], ingest)
    return 0


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not at least 1")
    return number


def _command(chosen: argparse.Namespace) -> str:
    extra = [f"--first {chosen.first}"] if chosen.first else []
    if chosen.ingest_seconds != INGEST_SECONDS:
        extra.append(f"--ingest-seconds {chosen.ingest_seconds}")
    return f"make read-rules SEEDS={chosen.seeds}" + (f' ARGS="{" ".join(extra)}"' if extra else "")


def _under_faults(seeds: range, config: str) -> Faults:
    for faults in compare_under_faults(seeds, config):
        if faults.schedules % PROGRESS_SEEDS == 0:
            print(f"{config}: {faults.schedules} of {len(seeds)} schedules", file=sys.stderr, flush=True)
    title = f"N/R/W {config}, {faults.schedules} schedules, wrong rows for 10,000 answered searches"
    print(f"\n{title}\n{faults_table(faults)}", flush=True)
    return faults


if __name__ == "__main__":
    sys.exit(main())
