"""Answers to something else serve operations that had arrived when it was sent, and nobody else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import grpc
import pytest
from opentelemetry.trace import INVALID_SPAN

from ostraka.cli.mesh_file import free_ports
from ostraka.v1 import shard_pb2
from services.quorum.gtid import GtidSet
from services.quorum.replica import Summary
from services.quorum.status import ReplicaStatus
from services.router.catalogue import Catalogue, Collection
from services.router.node_choice import HedgePace, NodeBook
from services.router.node_links import NodeLinks
from services.router.summary_rounds import SummaryRounds, Ticket, Told
from services.router.wire import SetReader
from services.runtime import topology_file
from services.runtime.clock import SYSTEM_CLOCK
from services.runtime.config import parse
from services.runtime.tls import dev_certificates, server_credentials

NODES = ("n0", "n1", "n2")


class HeldNode:
    """Answers Summary with nothing, once it is let go."""

    def __init__(self) -> None:
        self.asked = 0
        self.came = asyncio.Event()
        self.let_go = asyncio.Event()

    def handler(self) -> grpc.GenericRpcHandler:
        """Of the one method that is called."""
        summary = grpc.unary_unary_rpc_method_handler(
            self._summary,
            request_deserializer=shard_pb2.SummaryRequest.FromString,
            response_serializer=shard_pb2.SummaryResponse.SerializeToString,
        )
        return grpc.method_handlers_generic_handler("ostraka.v1.ShardService", {"Summary": summary})

    async def _summary(self, _: shard_pb2.SummaryRequest, __: object) -> shard_pb2.SummaryResponse:
        self.asked += 1
        self.came.set()
        await self.let_go.wait()
        return shard_pb2.SummaryResponse()


@dataclass
class Stage:
    """A coordinator's rounds and the nodes that it asks."""

    collection: Collection
    rounds: SummaryRounds
    nodes: dict[str, HeldNode]
    heard: dict[str, list[tuple[str, Told | None]]] = field(default_factory=dict)
    news: asyncio.Event = field(default_factory=asyncio.Event)

    def join(self, name: str, *, urgent: bool = False) -> Ticket:
        mine = self.heard.setdefault(name, [])

        def listen(node: str, told: Told | None) -> None:
            mine.append((node, told))
            self.news.set()

        return self.rounds.join(self.collection, listen, INVALID_SPAN, urgent=urgent)

    async def until_told(self, name: str, node: str) -> None:
        while not self.of(name, node):
            self.news.clear()
            await self.news.wait()

    def of(self, name: str, node: str) -> list[Told | None]:
        return [told for asked, told in self.heard[name] if asked == node]

    def told(self, node: str) -> Told:
        return {
            shard: Summary(self.collection.replica_of[shard, node], ReplicaStatus.OK, GtidSet.EMPTY, 7, members.epoch)
            for shard, members in self.collection.members.items()
        }


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    nodes = {name: HeldNode() for name in NODES}
    ports = free_ports(NODES)
    rows = {name: {"address": f"127.0.0.1:{ports[name]}"} for name in NODES}
    config = parse({"nodes": rows, "collections": {"docs": {"shards": 2, "replicas": 3}}}, tmp_path / "mesh.toml", {})
    dev_certificates(config)
    servers = []
    for name, node in nodes.items():
        server = grpc.aio.server()
        server.add_generic_rpc_handlers((node.handler(),))
        server.add_secure_port(config.nodes[name].address, server_credentials(config.certs_dir, name))
        await server.start()
        servers.append(server)
    links = NodeLinks.open(config, "router")
    topology_file.bootstrap(config)
    collection = Catalogue.of(config, topology_file.load(config)).get("docs")
    pace = HedgePace()
    for _ in range(100):
        pace.observe(10.0)  # legs take long, so summaries rest as long as they may
    rounds = SummaryRounds(links, NodeBook(NODES), SetReader(), SYSTEM_CLOCK, 64, pace)
    yield Stage(collection, rounds, nodes)
    for node in nodes.values():
        node.let_go.set()
    await rounds.close()
    await links.close()
    for server in servers:
        await server.stop(None)


async def test_who_arrived_before_it_was_sent_is_served(stage: Stage) -> None:
    stage.join("under way")
    stage.join("waiting")
    arrivals = stage.rounds.arrivals()
    stage.join("later")
    told = stage.told("n1")
    stage.rounds.overheard("docs", "n1", arrivals, told)
    assert [stage.of(name, "n1") for name in ("under way", "waiting", "later")] == [[told], [told], []]
    assert stage.heard["waiting"] == [("n1", told)]
    stage.rounds.overheard("docs", "n1", arrivals, told)
    assert stage.heard["waiting"] == [("n1", told)], "each node is heard once"


async def test_a_summary_that_everyone_has_heard_otherwise_is_not_sent(stage: Stage) -> None:
    node = stage.nodes["n1"]
    first = stage.join("first")
    await node.came.wait()
    stage.join("second")
    node.let_go.set()
    await stage.until_told("first", "n1")
    first.leave()
    stage.rounds.overheard("docs", "n1", stage.rounds.arrivals(), stage.told("n1"))
    assert stage.of("second", "n1") == [stage.told("n1")]
    stage.join("third", urgent=True)
    await stage.until_told("third", "n1")
    assert node.asked == 2, "the first's and the third's"


async def test_who_comes_later_is_asked_for_as_ever(stage: Stage) -> None:
    node = stage.nodes["n1"]
    stage.join("first")
    await node.came.wait()
    arrivals = stage.rounds.arrivals()
    stage.join("later")
    stage.rounds.overheard("docs", "n1", arrivals, stage.told("n1"))
    node.let_go.set()
    await stage.until_told("later", "n1")
    assert node.asked == 2
    assert stage.of("first", "n1") == [stage.told("n1")]


@pytest.mark.parametrize("what", ["no shard", "another epoch", "another replica", "failed", "not a voter's node"])
async def test_what_is_no_vote_tells_nobody(stage: Stage, what: str) -> None:
    told = stage.told("n1")
    if what == "no shard":
        del told[1]
    elif what == "another epoch":
        told[1] = replace(told[1], epoch=0)
    elif what == "another replica":
        told[1] = replace(told[1], replica_id="ab" * 16)
    elif what == "failed":
        told[1] = replace(told[1], status=ReplicaStatus.FAILED)
    stage.join("first")
    stage.rounds.overheard("docs", "n9" if what == "not a voter's node" else "n1", stage.rounds.arrivals(), told)
    assert stage.heard["first"] == []
