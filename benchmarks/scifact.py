"""SciFact through the router at QUORUM: nDCG@10 of every search mode over the 300 test claims.

    python -m benchmarks.scifact              embeds the whole corpus through the mesh (`make eval`)
    python -m benchmarks.scifact --prepared   brings prepared vectors, after checking 50 of them against the mesh

Prints each mode beside its reference of the same run, writes reports/scifact.json, and exits 1 below `LEAST`.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from pathlib import Path

from benchmarks.datasets import DataAbsentError, scifact
from benchmarks.quality import CHECKED, evaluate, print_table, references, write_report
from loadtest.mesh import client_of, running_mesh, temporary_mesh
from ostraka.search_modes import SearchMode

LEAST = {SearchMode.DENSE: 0.640, SearchMode.LEXICAL: 0.670, SearchMode.HYBRID: 0.715}
"""Published references: dense 0.644, BM25 0.683, reciprocal rank fusion 0.718."""
COSINE_MIN = 0.999
MODES = (SearchMode.DENSE, SearchMode.LEXICAL, SearchMode.HYBRID, SearchMode.TWO_STAGE)
COLLECTION_TABLE = "\n[collections.{name}]\nshards = 2\nreplicas = 3\n"


async def run(args: argparse.Namespace) -> int:
    """Measure, print, and return the exit code."""
    began_s = time.monotonic()
    try:
        data = scifact()
    except DataAbsentError as absent:
        print(f"benchmarks.scifact: {absent}", file=sys.stderr)
        return 2
    mesh = (
        running_mesh(args.mesh_file, collection=args.collection)
        if args.mesh_file
        else temporary_mesh(COLLECTION_TABLE.format(name=args.collection))
    )
    expected = references(data)
    async with mesh as config, client_of(config, args.collection) as client:
        found = await evaluate(client, data, MODES, prepared=args.prepared)
    print(file=sys.stderr)
    if found.cosine_min is not None:
        print(f"prepared vectors: least cosine of {CHECKED} to the mesh's own {found.cosine_min:.5f} (>= {COSINE_MIN})")
    print_table(found, expected, LEAST, "SciFact")
    print(f"written to {write_report('scifact', found, expected, time.monotonic() - began_s)}")
    good = all(found.ndcg_at_10[mode] >= least for mode, least in LEAST.items())
    return 0 if good and (found.cosine_min is None or found.cosine_min >= COSINE_MIN) else 1


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scifact", description=__doc__.partition("\n")[0])
    parser.add_argument("--prepared", action="store_true", help="use the prepared vectors instead of embedding all")
    parser.add_argument("--mesh-file", type=Path, help="mesh to use; without it one is started and stopped")
    parser.add_argument("--collection", default="scifact")
    raise SystemExit(asyncio.run(run(parser.parse_args())))


if __name__ == "__main__":
    main()
