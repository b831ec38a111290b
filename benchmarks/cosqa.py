"""CoSQA through the router at QUORUM: nDCG@10 of every search mode, web queries against Python functions.

    python -m benchmarks.cosqa     embeds 6,267 functions through the mesh (about 5 minutes)

Prints each mode, BM25 beside its reference of the same run, and writes reports/cosqa.json. Reports; accepts anything.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from pathlib import Path

from benchmarks.datasets import DataAbsentError, cosqa
from benchmarks.quality import evaluate, print_table, references, write_report
from benchmarks.scifact import COLLECTION_TABLE, MODES
from loadtest.mesh import client_of, running_mesh, temporary_mesh


async def run(args: argparse.Namespace) -> int:
    """Measure, print, and return the exit code."""
    began_s = time.monotonic()
    try:
        data = cosqa()
    except DataAbsentError as absent:
        print(f"benchmarks.cosqa: {absent}", file=sys.stderr)
        return 2
    mesh = (
        running_mesh(args.mesh_file, collection=args.collection)
        if args.mesh_file
        else temporary_mesh(COLLECTION_TABLE.format(name=args.collection))
    )
    expected = references(data)
    async with mesh as config, client_of(config, args.collection) as client:
        found = await evaluate(client, data, MODES, prepared=False)
    print(file=sys.stderr)
    print_table(found, expected, {}, "CoSQA")
    print(f"written to {write_report('cosqa', found, expected, time.monotonic() - began_s)}")
    return 0


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cosqa", description=__doc__.partition("\n")[0])
    parser.add_argument("--mesh-file", type=Path, help="mesh to use; without it one is started and stopped")
    parser.add_argument("--collection", default="cosqa")
    raise SystemExit(asyncio.run(run(parser.parse_args())))


if __name__ == "__main__":
    main()
