"""SciFact through the router at QUORUM: nDCG@10 of dense retrieval over the 300 test claims.

    python -m benchmarks.scifact              embeds the whole corpus through the mesh (`make eval`)
    python -m benchmarks.scifact --prepared   brings prepared vectors, after checking 50 of them against the mesh

Exits 1 below `NDCG_MIN`. The reference, exact search over the same model's vectors, is 0.644.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.datasets import DataAbsentError, SciFact, scifact
from benchmarks.ingest import ingest
from benchmarks.measures import ndcg
from loadtest.mesh import client_of, running_mesh, temporary_mesh
from ostraka.client import Client
from ostraka.results import Consistency

NDCG_MIN = 0.640
COSINE_MIN = 0.999
CHECKED = 50
CLAIMS_PER_CALL = 30
K = 10
COLLECTION_TABLE = "\n[collections.{name}]\nshards = 2\nreplicas = 3\n"


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What a run measured."""

    ndcg_at_10: float
    claims: int
    cosine_min: float | None
    """Least agreement of prepared and mesh-made vectors; None when nothing was prepared."""


async def evaluate(client: Client, data: SciFact, *, prepared: bool) -> Evaluation:
    """Ingest SciFact into the client's collection and measure it. Raises OstrakaError."""
    cosine_min = None
    if prepared:
        cosine_min = await check_prepared(client, data)
        await ingest(client, data.corpus[CHECKED:], data.corpus_vectors[CHECKED:], on_progress=_print_progress)
    else:
        await ingest(client, data.corpus, on_progress=_print_progress)
    values: list[float] = []
    for start in range(0, len(data.claims), CLAIMS_PER_CALL):
        part = data.claims[start : start + CLAIMS_PER_CALL]
        rows = data.claim_vectors[start : start + CLAIMS_PER_CALL].astype(np.float32)
        queries = list(rows) if prepared else [text for _, text in part]
        results = await client.search_batch(queries, k=K, consistency=Consistency.QUORUM, timeout_s=30)
        for (query_id, _), result in zip(part, results, strict=True):
            assert result.complete, result.coverage
            values.append(ndcg([hit.passage.document_id for hit in result], data.judgements[query_id], K))
    return Evaluation(sum(values) / len(values), len(values), cosine_min)


async def check_prepared(client: Client, data: SciFact) -> float:
    """Store the first `CHECKED` passages by text, read their vectors back, return the least cosine to the prepared."""
    chosen = data.corpus[:CHECKED]
    await ingest(client, chosen)
    reply = await client.get([document.document_id for document in chosen], include_vectors=True)
    made = {passage.document_id: passage.vector for passage in reply.passages}
    cosines = []
    for document, row in zip(chosen, data.corpus_vectors, strict=False):
        vector, prepared = made[document.document_id], row.astype(np.float32)
        assert vector is not None, "vectors were asked for"
        cosines.append(float(vector @ prepared / (np.linalg.norm(vector) * np.linalg.norm(prepared))))
    return min(cosines)


def _print_progress(stored: int) -> None:
    print(f"\r{stored:,} documents stored", end="", file=sys.stderr, flush=True)


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
    async with mesh as config, client_of(config, args.collection) as client:
        found = await evaluate(client, data, prepared=args.prepared)
    print(file=sys.stderr)
    if found.cosine_min is not None:
        print(f"prepared vectors: least cosine of {CHECKED} to the mesh's own {found.cosine_min:.5f} (>= {COSINE_MIN})")
    print(
        f"SciFact nDCG@10 {found.ndcg_at_10:.4f} over {found.claims} claims at QUORUM"
        f" (>= {NDCG_MIN:.3f}; reference 0.644), {time.monotonic() - began_s:.0f} s"
    )
    good = found.ndcg_at_10 >= NDCG_MIN and (found.cosine_min is None or found.cosine_min >= COSINE_MIN)
    return 0 if good else 1


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scifact", description=__doc__.partition("\n")[0])
    parser.add_argument("--prepared", action="store_true", help="use the prepared vectors instead of embedding all")
    parser.add_argument("--mesh-file", type=Path, help="mesh to use; without it one is started and stopped")
    parser.add_argument("--collection", default="scifact")
    raise SystemExit(asyncio.run(run(parser.parse_args())))


if __name__ == "__main__":
    main()
