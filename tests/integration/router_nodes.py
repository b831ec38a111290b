"""Shard nodes for the coordinator's tests: the production ReplicaCore over memory, answering the contract's
messages without a network, with failures on request. Simulated, and named so: no TLS, no SQLite, no FAISS."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace
from typing import Any, TypeVar

import grpc
import numpy as np

from ostraka.v1 import passage_pb2, shard_pb2
from services.quorum.clock import Version
from services.quorum.gtid import Gtid, GtidSet
from services.quorum.members import Members, ReplicaRef
from services.quorum.replica import ReplicaCore
from services.quorum.rows import HeadRow, PassageRow, WriteBatch
from services.quorum.status import ReplicaStatus
from services.router.catalogue import Catalogue, Collection, Model
from services.router.membership import Membership
from services.router.node_choice import HedgeBudget, HedgePace, NodeBook
from services.router.node_links import NodeLinks
from services.router.read_types import ReadTools
from services.router.search_legs import SearchLegs
from services.router.summary_rounds import SummaryRounds
from services.router.wire import SetReader, set_from_proto, set_to_proto
from services.router.writing import Writing
from services.runtime.clock import SYSTEM_CLOCK
from services.runtime.config import Config, parse
from tests.simulation.memory_store import DurableRows, Transaction

DIM = 8
NODES = ("a", "b", "c")
SHARDS = (0, 1)
SOURCE = 77
WAIT_S = 20.0
STATISTICS_AGE_MS = 321
R = TypeVar("R")


def rpc_error(code: grpc.StatusCode, details: str = "simulated") -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details)


class SimulatedReplica:
    """One replica: the real core over rows in memory."""

    def __init__(self, replica_id: str) -> None:
        self.rows = DurableRows()
        self.core = ReplicaCore(replica_id, 1, GtidSet.EMPTY, 0)

    def write(self, batch: WriteBatch, epoch: int) -> ReplicaStatus:
        statuses = self.transact(lambda store: self.core.apply([(batch, epoch)], SYSTEM_CLOCK.wall_ms(), store))
        return statuses[0]

    def pull_from(self, peer: SimulatedReplica, want: GtidSet) -> None:
        for bundle in peer.core.pull(want, peer.rows):
            self.transact(partial(self.core.merge, bundle))

    def transact(self, act: Callable[[Transaction], R]) -> R:
        store = Transaction(self.rows)
        result = act(store)
        store.commit()
        self.core.committed()
        return result

    def live(self) -> Iterable[PassageRow]:
        return (row for document_id in list(self.rows.heads) for row in self.rows.live_passages(document_id))


@dataclass
class Faults:
    """What is wrong with a node. Methods are named as in the contract."""

    down: bool = False
    """Every call fails at once, as when nothing listens."""
    hanging: set[str] = field(default_factory=set)
    """These methods answer only once `resume` is set."""
    failing: set[str] = field(default_factory=set)
    refuse_writes: ReplicaStatus | None = None
    lose_acks: bool = False
    """Writes are applied but the answer is lost."""
    resume: asyncio.Event = field(default_factory=asyncio.Event)


class SimulatedShardNode:
    """One node with a replica of every shard; stands where a NodeLink stands."""

    def __init__(self, name: str, replicas: Mapping[int, SimulatedReplica]) -> None:
        self.name, self.address = name, f"simulated:{name}"
        self.replicas = dict(replicas)
        self.peers: Mapping[str, SimulatedShardNode] = {}
        self.faults = Faults()
        self.calls: list[tuple[str, Any]] = []
        self.arrived = asyncio.Event()
        self.stub = SimpleNamespace(
            Summary=self._method("Summary", self._summary),
            GetDocuments=self._method("GetDocuments", self._get),
            ListDocuments=self._method("ListDocuments", self._list),
            NodeStatus=self._method("NodeStatus", self._status),
        )
        self.write = self._method("Write", lambda data: self._write(shard_pb2.WriteRequest.FromString(data)))
        self.search = self._method("Search", lambda data: self._search(shard_pb2.SearchShardsRequest.FromString(data)))
        self.channel = SimpleNamespace(close=_nothing)

    def requests(self, method: str) -> list[Any]:
        return [request for name, request in self.calls if name == method]

    def _method(self, name: str, answer: Callable[[Any], Any]) -> Callable[..., Any]:
        async def call(request: Any, timeout: float, metadata: Any = None) -> Any:
            parsed = request
            if isinstance(request, bytes):
                write, search = shard_pb2.WriteRequest.FromString, shard_pb2.SearchShardsRequest.FromString
                parsed = write(request) if name == "Write" else search(request)
            self.calls.append((name, parsed))
            self.arrived.set()
            if self.faults.down or name in self.faults.failing:
                raise rpc_error(grpc.StatusCode.UNAVAILABLE, "connection refused")
            try:
                async with asyncio.timeout(timeout):
                    if name in self.faults.hanging:
                        await self.faults.resume.wait()
                    # One turn of the loop, as long as a message takes: what arrives together is together.
                    await asyncio.sleep(0)
            except TimeoutError:
                raise rpc_error(grpc.StatusCode.DEADLINE_EXCEEDED) from None
            reply = answer(request)
            if name == "Write" and self.faults.lose_acks:
                raise rpc_error(grpc.StatusCode.UNAVAILABLE, "connection reset")
            return reply

        return call

    def _summary(self, request: shard_pb2.SummaryRequest) -> shard_pb2.SummaryResponse:
        response = shard_pb2.SummaryResponse()
        for shard, epoch in zip(request.shards, request.epochs or [request.epoch] * len(request.shards), strict=True):
            told = self.replicas[shard].core.summary(epoch)
            response.summaries.add(
                shard=shard,
                replica=told.replica_id,
                status=shard_pb2.ReplicaStatus.ValueType(told.status.value),
                applied=set_to_proto(told.applied),
                hlc_max=told.hlc_max,
                epoch=told.epoch,
            )
        return response

    def _write(self, request: shard_pb2.WriteRequest) -> shard_pb2.WriteResponse:
        replica = self.replicas[request.shard]
        status = self.faults.refuse_writes or replica.write(_batch(request), request.epoch)
        return shard_pb2.WriteResponse(
            status=shard_pb2.ReplicaStatus.ValueType(status.value), replica=replica.core.replica_id
        )

    def _covered(self, shard: int, require: GtidSet, holders: Sequence[str]) -> bool:
        replica = self.replicas[shard]
        for holder in holders:
            missing = replica.core.missing(require)
            if missing and not self.peers[holder].faults.down:
                replica.pull_from(self.peers[holder].replicas[shard], missing)
        return not replica.core.missing(require)

    def _search(self, request: shard_pb2.SearchShardsRequest) -> shard_pb2.SearchShardsResponse:
        response = shard_pb2.SearchShardsResponse(node=self.name)
        for part in request.shards:
            replica = self.replicas[part.shard]
            result = response.shards.add(
                shard=part.shard,
                replica=replica.core.replica_id,
                status=shard_pb2.REPLICA_STATUS_OK,
                voting_epoch=replica.core.voting_epoch,
            )
            if not self._covered(part.shard, set_from_proto(part.require), part.holders):
                result.status = shard_pb2.REPLICA_STATUS_NOT_COVERED
            result.view.CopyFrom(set_to_proto(replica.core.applied))
            result.index_epoch = f"flat-{replica.core.applied.digest().hex()[:8]}"
            if result.status != shard_pb2.REPLICA_STATUS_OK:
                continue
            rows = list(replica.live())
            result.rows_live = len(rows)
            result.statistics_age_ms = STATISTICS_AGE_MS if request.mode != passage_pb2.SEARCH_MODE_DENSE else 0
            for query in request.queries:
                result.results.append(_answer(query, rows, request.k, request.mode))
        return response

    def _get(self, request: shard_pb2.GetDocumentsRequest) -> shard_pb2.GetDocumentsResponse:
        replica = self.replicas[request.shard]
        covered = self._covered(request.shard, set_from_proto(request.require), request.holders)
        response = shard_pb2.GetDocumentsResponse(
            status=shard_pb2.REPLICA_STATUS_OK if covered else shard_pb2.REPLICA_STATUS_NOT_COVERED,
            replica=replica.core.replica_id,
            view=set_to_proto(replica.core.applied),
            index_epoch="flat-0",
            voting_epoch=replica.core.voting_epoch,
        )
        for document_id in request.document_ids:
            head = replica.rows.head(document_id)
            if covered and head is not None:
                response.documents.add(
                    head=shard_pb2.HeadRow(
                        document_id=document_id, passages=head.passages, version=_version(head.version)
                    ),
                    passages=[
                        shard_pb2.PassageRow(
                            document_id=document_id, ordinal=row.ordinal, vector_f16=row.vector, payload=row.payload
                        )
                        for row in replica.rows.live_passages(document_id)
                    ],
                )
        return response

    def _list(self, request: shard_pb2.ListShardDocumentsRequest) -> shard_pb2.ListShardDocumentsResponse:
        """A filter is heeded as far as it asks for a source."""
        replica = self.replicas[request.shard]
        covered = self._covered(request.shard, set_from_proto(request.require), request.holders)
        response = shard_pb2.ListShardDocumentsResponse(
            status=shard_pb2.REPLICA_STATUS_OK if covered else shard_pb2.REPLICA_STATUS_NOT_COVERED,
            replica=replica.core.replica_id,
            view=set_to_proto(replica.core.applied),
            index_epoch="flat-0",
            voting_epoch=replica.core.voting_epoch,
        )
        rows: dict[str, list[PassageRow]] = {}
        for row in replica.live():
            rows.setdefault(row.document_id, []).append(row)
        for document_id in sorted(rows):
            first = passage_pb2.Passage.FromString(rows[document_id][0].payload)
            wanted = request.filter.equals.value.text
            if not covered or document_id <= request.after_document_id or (wanted and first.source != wanted):
                continue
            if len(response.documents) == request.limit:
                response.more = True
                break
            listed = response.documents.add(
                head=shard_pb2.HeadRow(
                    document_id=document_id,
                    passages=len(rows[document_id]),
                    version=_version(rows[document_id][0].version),
                ),
                source=first.source,
            )
            if request.include_passages:
                for row in rows[document_id]:
                    listed.passages.add(ordinal=row.ordinal, payload=row.payload, vector_f16=row.vector)
        return response

    def _status(self, _request: shard_pb2.NodeStatusRequest) -> shard_pb2.NodeStatusResponse:
        return shard_pb2.NodeStatusResponse(node=self.name)


class SimulatedMesh:
    """Two shards on three nodes, and the coordinator's parts on top."""

    def __init__(self, tmp: Any, **router: Any) -> None:
        self.config = config(tmp, **router)
        ids = {(shard, node): f"replica-{shard}-{node}" for shard in SHARDS for node in NODES}
        self.nodes = {
            node: SimulatedShardNode(node, {shard: SimulatedReplica(ids[shard, node]) for shard in SHARDS})
            for node in NODES
        }
        for node in self.nodes.values():
            node.peers = self.nodes
        self.collection = Collection(
            "docs",
            DIM,
            Model("model-x", "1"),
            {shard: Members(1, tuple(ReplicaRef(ids[shard, node], node) for node in NODES), 2, 2) for shard in SHARDS},
            tuple(bucket % len(SHARDS) for bucket in range(256)),
        )
        links: Any = self.nodes
        self.links = NodeLinks(links)
        self.reader = SetReader()
        self.book = NodeBook(NODES)
        self.pace = HedgePace()
        self.rounds = SummaryRounds(self.links, self.book, self.reader, SYSTEM_CLOCK, 2_048, self.pace)
        self.membership = Membership(Catalogue({"docs": self.collection}), None)
        self.tools = ReadTools(
            self.rounds, self.book, HedgeBudget(), self.pace, self.config.router, SYSTEM_CLOCK, self.membership
        )
        self.legs = SearchLegs(self.links, self.reader, self.config.router.search_wait_ms, self.rounds)
        self.writing = Writing(self.config, self.links, self.book, self.rounds, self.membership, SYSTEM_CLOCK, SOURCE)

    async def close(self) -> None:
        for node in self.nodes.values():
            node.faults.resume.set()
        await self.writing.close()
        await self.legs.close()
        await self.rounds.close()

    def prefer(self, *nodes: str) -> None:
        """Make the coordinator ask these nodes first, in order."""
        for node in (*nodes, *(node for node in NODES if node not in nodes)):
            self.book.sent(node)
            self.book.released(node)


def config(tmp: Any, **router: Any) -> Config:
    raw = {
        "router": {"write_retry_ms": 1, "leg_hedge_ms": 20, **router},
        "nodes": {node: {"address": f"127.0.0.1:{port}"} for port, node in enumerate(NODES, start=1)},
        "collections": {"docs": {"dim": DIM, "embedding_model": "model-x", "embedding_revision": "1"}},
    }
    return parse(raw, tmp / "mesh.toml", {})


def vector(*values: float) -> np.ndarray[Any, np.dtype[np.float32]]:
    """A unit vector that begins with `values`."""
    full = np.zeros(DIM, dtype=np.float32)
    full[: len(values)] = values
    unit: np.ndarray[Any, np.dtype[np.float32]] = full / np.float32(np.linalg.norm(full))
    return unit


async def eventually(condition: Callable[[], bool]) -> None:
    async def poll() -> None:
        while not condition():  # noqa: ASYNC110  # the condition has no event of its own
            await asyncio.sleep(0)

    await asyncio.wait_for(poll(), WAIT_S)


def _batch(request: shard_pb2.WriteRequest) -> WriteBatch:
    version = Version(request.version.hlc, request.version.source)
    return WriteBatch(
        Gtid(request.gtid.source, request.gtid.seq),
        version,
        tuple(PassageRow(r.document_id, r.ordinal, version, r.vector_f16, r.payload) for r in request.passages),
        tuple(HeadRow(h.document_id, h.passages, version) for h in request.heads),
        set_from_proto(request.depends),
    )


def _answer(
    query: shard_pb2.SearchQuery, rows: Sequence[PassageRow], k: int, mode: passage_pb2.SearchMode.ValueType
) -> shard_pb2.ShardQueryResult:
    """Exact by cosine; for BM25 stands the number of words that query and text share."""
    shared = {(row.document_id, row.ordinal): _shared_words(query.text, row) for row in rows}
    near, worded = [], []
    if mode != passage_pb2.SEARCH_MODE_LEXICAL:
        near = _ranked(np.frombuffer(query.vector.data, "<f4"), rows)[:k]
    if mode in (passage_pb2.SEARCH_MODE_LEXICAL, passage_pb2.SEARCH_MODE_HYBRID):
        found = [row for row in rows if shared[row.document_id, row.ordinal]]
        found.sort(key=lambda row: (-shared[row.document_id, row.ordinal], row.document_id, row.ordinal))
        worded = found[:k]
    result = shard_pb2.ShardQueryResult()
    for score, row in near:
        hit = _hit(score, row)
        if mode == passage_pb2.SEARCH_MODE_TWO_STAGE:
            hit.lexical_score = shared[row.document_id, row.ordinal]
        result.hits.append(hit)
    for row in worded:
        hit = _hit(0.0, row)
        hit.lexical_score = shared[row.document_id, row.ordinal]
        if any(other is row for _, other in near):
            hit.payload = b""
        result.lexical_hits.append(hit)
    return result


def _shared_words(text: str, row: PassageRow) -> float:
    words = passage_pb2.Passage.FromString(row.payload).text.split()
    return float(sum(word in words for word in set(text.split())))


def _ranked(query: Any, rows: Sequence[PassageRow]) -> list[tuple[float, PassageRow]]:
    scored = [(float(np.dot(query, np.frombuffer(row.vector, "<f2").astype("<f4"))), row) for row in rows]
    return sorted(scored, key=lambda pair: (-pair[0], pair[1].document_id, pair[1].ordinal))


def _hit(score: float, row: PassageRow) -> shard_pb2.ShardHit:
    return shard_pb2.ShardHit(
        document_id=row.document_id,
        ordinal=row.ordinal,
        version=_version(row.version),
        score=score,
        payload=row.payload,
        index_part="delta",
        index_kind="Flat",
    )


def _version(version: Version) -> passage_pb2.Version:
    return passage_pb2.Version(hlc=version.hlc, source=version.source)


async def _nothing() -> None:
    return None
