"""Vector Search through the router at QUORUM and at ONE, beside an empty RPC over the same TLS, in one run.

    python -m benchmarks.search [--mesh-file F] [--collection C] [--concurrency 32] [--json]

Only the ratios mean something: they carry from machine to machine, the rates do not.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeAlias

import grpc
import numpy as np
import uvloop

from benchmarks.closed_loop import Call, Throughput, compare
from benchmarks.datasets import Document
from benchmarks.empty_rpc import METHOD
from benchmarks.ingest import ingest
from loadtest.mesh import client_of, running_mesh, temporary_mesh
from ostraka.v1 import passage_pb2, router_pb2
from ostraka.v1.router_pb2_grpc import RouterServiceStub
from services.runtime.channel import channel_options
from services.runtime.config import Config
from services.runtime.tls import Role, channel_credentials

QUERIES = 512
CLUSTERS = 200
Level: TypeAlias = passage_pb2.ConsistencyLevel.ValueType
EMPTY, ONE, QUORUM = "empty RPC", "Search ONE", "Search QUORUM"


def channel_to(config: Config, address: str) -> grpc.aio.Channel:
    """A channel with the client's certificate to something that holds the router's."""
    options = channel_options(Role.ROUTER, config.mesh.message_bytes_max)
    return grpc.aio.secure_channel(address, channel_credentials(config.certs_dir, "client"), options=options)


@asynccontextmanager
async def empty_server(config: Config) -> AsyncIterator[str]:
    """The yardstick in its own process; yields its address."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "benchmarks.empty_rpc",
        str(config.path),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield f"127.0.0.1:{int(await process.stdout.readline())}"
    finally:
        process.stdin.close()
        await process.wait()


def search_call(
    stub: RouterServiceStub, collection: str, dim: int, level: passage_pb2.ConsistencyLevel.ValueType
) -> Call:
    """Search for the next of a fixed list of random unit vectors, ten hits each."""
    rows = np.random.default_rng(7).normal(size=(QUERIES, dim))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    requests = itertools.cycle(
        router_pb2.SearchRequest(
            collection=collection,
            queries=[router_pb2.Query(vector=passage_pb2.Vector(dim=dim, data=row.astype("<f4").tobytes()))],
            k=10,
            consistency=level,
        )
        for row in rows
    )
    return lambda: stub.Search(next(requests), timeout=10)  # type: ignore[return-value]  # aio stub: the call is awaitable


async def measure(config: Config, collection: str, args: argparse.Namespace) -> dict[str, Throughput]:
    """All three, interleaved."""
    dim = config.collections[collection].dim
    async with (
        empty_server(config) as empty_address,
        channel_to(config, empty_address) as empty_channel,
        channel_to(config, config.router.addresses[0]) as channel,
    ):
        empty: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = empty_channel.unary_unary(METHOD)
        stub = RouterServiceStub(channel)
        calls: dict[str, Call] = {
            EMPTY: lambda: empty(b"", timeout=10),
            ONE: search_call(stub, collection, dim, passage_pb2.CONSISTENCY_LEVEL_ONE),
            QUORUM: search_call(stub, collection, dim, passage_pb2.CONSISTENCY_LEVEL_QUORUM),
        }
        return await compare(calls, concurrency=args.concurrency, seconds=args.seconds, rounds=args.rounds)


def report(results: dict[str, Throughput], rows: int, concurrency: int) -> dict[str, object]:
    """JSON-ready values of a run."""
    return {
        "rows": rows,
        "concurrency": concurrency,
        "rate_per_s": {name: round(result.rate_per_s, 1) for name, result in results.items()},
        "p50_ms": {name: round(result.latency_ms(50), 2) for name, result in results.items()},
        "p95_ms": {name: round(result.latency_ms(95), 2) for name, result in results.items()},
        "quorum_to_empty": round(results[QUORUM].rate_per_s / results[EMPTY].rate_per_s, 3),
        "quorum_to_one": round(results[QUORUM].rate_per_s / results[ONE].rate_per_s, 3),
    }


def print_report(results: dict[str, Throughput], found: dict[str, object]) -> None:
    """The run as a table."""
    print(f"{found['rows']} rows, concurrency {found['concurrency']}, median of rounds")
    for name, result in results.items():
        print(
            f"{name:<14} {result.rate_per_s:>9,.0f} per s   p50 {result.latency_ms(50):>7.2f} ms"
            f"   p95 {result.latency_ms(95):>7.2f} ms"
        )
    print(f"QUORUM / empty RPC {found['quorum_to_empty']}   QUORUM / ONE {found['quorum_to_one']}")


async def ensure_rows(config: Config, collection: str, rows: int) -> int:
    """Live rows of the collection's first replicas; fills an empty one with `rows` clustered unit vectors."""
    async with client_of(config, collection) as client:
        status = await client.status()
        live = sum(status.replicas(collection, s)[0].rows_live for s in range(config.collections[collection].shards))
        if live:
            return live
        rng = np.random.default_rng(3)
        dim = config.collections[collection].dim
        centres = rng.normal(size=(CLUSTERS, dim))
        vectors = centres[rng.integers(CLUSTERS, size=rows)] + rng.normal(size=(rows, dim))
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        documents = [Document(f"bench-{i}", "", f"row {i}", "bench:row") for i in range(rows)]
        await ingest(client, documents, vectors.astype(np.float16))
    return rows


async def run(args: argparse.Namespace) -> None:
    """Measure and print."""
    mesh = running_mesh(args.mesh_file, collection=args.collection) if args.mesh_file else temporary_mesh("")
    async with mesh as config:
        rows = await ensure_rows(config, args.collection, args.rows)
        results = await measure(config, args.collection, args)
    found = report(results, rows, args.concurrency)
    print_report(results, found)
    if args.json:
        print(json.dumps(found))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.search", description=__doc__.partition("\n")[0])
    parser.add_argument("--mesh-file", type=Path, help="mesh to measure; without it one is started and stopped")
    parser.add_argument("--collection", default="docs", help="which to search")
    parser.add_argument("--rows", type=int, default=20_000, help="rows to fill an empty collection with")
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=5.0, help="length of one round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="also print one JSON line")
    uvloop.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
