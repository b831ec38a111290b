"""A large collection is served from trained FastScan segments on every replica, named in provenance, at high recall."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest

from benchmarks import datasets
from benchmarks.datasets import SysDocs
from benchmarks.ingest import ingest
from benchmarks.measures import recall_at
from ostraka.client import Client
from ostraka.mesh_status import MeshStatus
from ostraka.results import Consistency
from ostraka.v1 import passage_pb2, shard_pb2
from ostraka.v1.shard_pb2_grpc import ShardServiceStub
from services.runtime.channel import open_channel
from services.runtime.config import Config
from services.runtime.tls import Role
from tests.mesh import MakeMesh, Mesh, eventually

pytestmark = [pytest.mark.processes, pytest.mark.slow, pytest.mark.timeout(600)]

COLLECTION = "sysdocs"
SHARDS = 2
REPLICAS = 3
TABLE = f"""
[collections.{COLLECTION}]
shards = {SHARDS}
replicas = {REPLICAS}
"""
HELD_OUT = 256
"""Queries are real passages that are not in the collection."""
RECALL_MIN = 0.95
K = 10
QUERIES_PER_CALL = 32
TRAINED_WITHIN_S = 240.0
FASTSCAN = re.compile(r"IVF\d+,PQ\d+x4fs")

Rows = npt.NDArray[np.float32]


@pytest.fixture
def sysdocs() -> SysDocs:
    """The data set, where it is present."""
    try:
        return datasets.sysdocs()
    except datasets.DataAbsentError as absent:
        pytest.skip(str(absent))


@pytest.fixture
def sysdocs_mesh(sysdocs: SysDocs, make_mesh: MakeMesh) -> Mesh:
    """A mesh with a collection for it; nothing is started without the data."""
    assert sysdocs.documents
    return make_mesh(TABLE)


async def test_every_replica_serves_from_fastscan_segments_at_high_recall(sysdocs: SysDocs, sysdocs_mesh: Mesh) -> None:
    vectors = sysdocs.vectors.astype(np.float32)
    queries, rows = vectors[:HELD_OUT], vectors[HELD_OUT:]
    ids = [document.document_id for document in sysdocs.documents[HELD_OUT:]]
    config = sysdocs_mesh.config
    async with sysdocs_mesh.client(COLLECTION) as client:
        await ingest(client, sysdocs.documents[HELD_OUT:], sysdocs.vectors[HELD_OUT:])

        async def trained() -> bool:
            return all_trained(await client.status(), config.shard.delta_rows_flush)

        await eventually(trained, TRAINED_WITHIN_S, "FastScan segments on every replica")
        through_router = await search_router(client, queries, ids)
        of_replica = await search_replicas(config, queries, ids)

    exact = queries @ rows.T
    assert recall_at(through_router, exact, K) >= RECALL_MIN
    assert len(of_replica) == SHARDS * REPLICAS
    shards = sorted({shard for shard, _ in of_replica})
    assert shards == list(range(SHARDS))
    for combination in range(REPLICAS):
        # A whole answer needs one replica of each shard: the i-th of every shard, so each replica takes part once.
        chosen = [sorted(key for key in of_replica if key[0] == shard)[combination] for shard in shards]
        found = merged([of_replica[key] for key in chosen], exact)
        recall = recall_at(found, exact, K)
        print(f"recall@{K} {recall:.4f} from replicas {[replica[:8] for _, replica in chosen]}")
        assert recall >= RECALL_MIN


def all_trained(status: MeshStatus, rows_min: int) -> bool:
    """Every replica holds at least `rows_min` rows in FastScan segments."""
    replicas = [replica for shard in range(SHARDS) for replica in status.replicas(COLLECTION, shard)]
    return len(replicas) == SHARDS * REPLICAS and all(
        sum(segment.rows_live for segment in replica.segments if FASTSCAN.search(segment.index_kind)) >= rows_min
        for replica in replicas
    )


async def search_router(client: Client, queries: Rows, ids: Sequence[str]) -> npt.NDArray[np.int64]:
    """Row numbers (queries, K) that QUORUM searches return; each hit's provenance names the part it came from."""
    row_of = {document_id: row for row, document_id in enumerate(ids)}
    found = np.full((len(queries), K), -1, np.int64)
    kinds: set[str] = set()
    for start in range(0, len(queries), QUERIES_PER_CALL):
        part = list(queries[start : start + QUERIES_PER_CALL])
        results = await client.search_batch(part, k=K, consistency=Consistency.QUORUM, timeout_s=30)
        for query, result in enumerate(results, start):
            for rank, hit in enumerate(result):
                found[query, rank] = row_of[hit.passage.document_id]
                kinds.add(hit.provenance.index_kind)
                assert hit.provenance.index_part
    assert any(FASTSCAN.search(kind) for kind in kinds), kinds
    return found


async def search_replicas(
    config: Config, queries: Rows, ids: Sequence[str]
) -> dict[tuple[int, str], npt.NDArray[np.int64]]:
    """Row numbers (queries, K) of each (shard, replica), asked at its own node; each serves from FastScan."""
    row_of = {document_id: row for row, document_id in enumerate(ids)}
    found: dict[tuple[int, str], npt.NDArray[np.int64]] = {}
    kinds: dict[tuple[int, str], set[str]] = {}
    for node in config.nodes.values():
        async with open_channel(config, node.address, server_role=Role.SHARD, identity=Role.ADMIN.value) as channel:
            stub = ShardServiceStub(channel)
            for start in range(0, len(queries), QUERIES_PER_CALL):
                reply = await stub.Search(_request(queries[start : start + QUERIES_PER_CALL]), timeout=30)
                for result in reply.shards:
                    assert result.status == shard_pb2.REPLICA_STATUS_OK, result.message
                    key = (result.shard, result.replica)
                    of_key = found.setdefault(key, np.full((len(queries), K), -1, np.int64))
                    for query, answer in enumerate(result.results, start):
                        for rank, hit in enumerate(answer.hits[:K]):
                            of_key[query, rank] = row_of[hit.document_id]
                            kinds.setdefault(key, set()).add(hit.index_kind)
    assert all(any(FASTSCAN.search(kind) for kind in of_key) for of_key in kinds.values()), kinds
    return found


def merged(parts: Sequence[npt.NDArray[np.int64]], exact: Rows) -> npt.NDArray[np.int64]:
    """The best K rows of one replica per shard, by exact score."""
    candidates = np.concatenate(parts, axis=1)
    scores = np.where(candidates >= 0, np.take_along_axis(exact, candidates.clip(min=0), axis=1), -np.inf)
    best: npt.NDArray[np.int64] = np.take_along_axis(candidates, np.argsort(-scores, axis=1)[:, :K], axis=1)
    return best


def _request(queries: Rows) -> shard_pb2.SearchShardsRequest:
    return shard_pb2.SearchShardsRequest(
        epoch=1,
        collection=COLLECTION,
        shards=[shard_pb2.ShardSearch(shard=shard) for shard in range(SHARDS)],
        queries=[
            shard_pb2.SearchQuery(vector=passage_pb2.Vector(dim=row.size, data=row.astype("<f4").tobytes()))
            for row in queries
        ],
        k=K,
    )
