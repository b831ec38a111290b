"""Three shard nodes and routers inside the test's process: production servicers, SQLite and real mutual TLS; nothing
embeds or generates, so documents bring their vectors."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ostraka.v1 import passage_pb2, router_pb2, router_pb2_grpc
from services.router.ask import Asking
from services.router.catalogue import Catalogue
from services.router.embedder import Embedder
from services.router.generation import Generation
from services.router.idempotency import KeyedWrites
from services.router.ingest import Ingest
from services.router.listing import Listing
from services.router.lookup import Lookup
from services.router.membership import Membership
from services.router.node_choice import HedgeBudget, HedgePace, NodeBook
from services.router.node_links import NodeLink, NodeLinks
from services.router.read_types import ReadTools
from services.router.retrieval import Retrieval
from services.router.search_legs import SearchLegs
from services.router.service import RouterServicer
from services.router.status import Status
from services.router.summary_rounds import SummaryRounds
from services.router.wire import SetReader
from services.router.write_back import WriteBack
from services.router.writing import Writing
from services.runtime import topology_file
from services.runtime.channel import ChannelPool, open_channel
from services.runtime.clock import SYSTEM_CLOCK
from services.runtime.config import Config, parse
from services.runtime.record_file import FileRecordStore
from services.runtime.server import MeshServer
from services.runtime.tls import Role, dev_certificates
from tests.integration.shard_nodes import COLLECTION, ShardNode, eventually, gossip
from tests.unit.shard_rows import DIM

NODES = ("n1", "n2", "n3")
GOSSIP_MS = 60_000
"""After the nodes have caught up they do not talk again within a test, so what one alone has stays there."""
TIMEOUT_S = 10.0


def level_config(directory: Path) -> Config:
    """Three nodes, one collection of one shard, N=3, R=W=2."""
    raw = {
        "mesh": {"drain_s": 1.0},
        "shard": {"disk_reserve_bytes": 0, "gossip_ms": GOSSIP_MS},
        "nodes": {name: {"address": f"127.0.0.1:{port}"} for port, name in enumerate(NODES, start=1)},
        "collections": {
            COLLECTION: {"shards": 1, "replicas": 3, "read_quorum": 2, "write_quorum": 2, "dim": DIM},
        },
    }
    config = parse(raw, directory / "mesh.toml", {})
    dev_certificates(config)
    topology_file.bootstrap(config)
    return config


class LevelRouter:
    """One router on the nodes, and a client's stub on it."""

    def __init__(self, config: Config, nodes: dict[str, ShardNode], source: int) -> None:
        links = {
            name: NodeLink(
                name, node.address, open_channel(config, node.address, server_role=Role.SHARD, identity="router")
            )
            for name, node in nodes.items()
        }
        self.config, self.links, self.book = config, NodeLinks(links), NodeBook(tuple(nodes))
        reader, pace = SetReader(), HedgePace()
        self.rounds = SummaryRounds(self.links, self.book, reader, SYSTEM_CLOCK, 256, pace)
        catalogue = Catalogue.of(config, topology_file.load(config))
        self.store = FileRecordStore(config)
        self.membership = Membership(catalogue, self.store)
        tools = ReadTools(self.rounds, self.book, HedgeBudget(), pace, config.router, SYSTEM_CLOCK, self.membership)
        self.legs = SearchLegs(self.links, reader, config.router.search_wait_ms, self.rounds)
        self.writing = Writing(config, self.links, self.book, self.rounds, self.membership, SYSTEM_CLOCK, source)
        self.nowhere = ChannelPool(config, ("127.0.0.1:1",), server_role=Role.EMBED, identity="router")
        embedder, retrieval = Embedder(config, self.nowhere), Retrieval(tools, self.legs)
        self.servicer = RouterServicer(
            config,
            catalogue,
            embedder,
            retrieval,
            Lookup(self.links, reader, tools),
            Ingest(embedder),
            self.writing,
            Asking(config, embedder, retrieval, Generation(self.nowhere)),
            Status(catalogue, self.links, (), embedder),
            Listing(self.links, reader, tools),
            KeyedWrites(self.links, WriteBack(self.links, config.router.search_wait_ms), self.membership),
        )

    async def start(self) -> LevelRouter:
        self.server = await MeshServer.start(
            self.config,
            service_name="router",
            role=Role.ROUTER,
            identity="router",
            address="127.0.0.1:0",
            servicers=((router_pb2_grpc.add_RouterServiceServicer_to_server, self.servicer),),
        )
        address = f"127.0.0.1:{self.server.port}"
        self.channel = open_channel(self.config, address, server_role=Role.ROUTER, identity="client")
        self.stub: router_pb2_grpc.RouterServiceAsyncStub = router_pb2_grpc.RouterServiceStub(self.channel)
        return self

    def prefer(self, *names: str) -> None:
        """Make this router ask these nodes first, in order."""
        for name in (*names, *(name for name in self.links.names if name not in names)):
            self.book.sent(name)
            self.book.released(name)

    async def stop(self) -> None:
        await self.channel.close()
        await self.server.stop(0)
        await self.writing.close()
        await self.legs.close()
        await self.rounds.close()
        await self.links.close()
        await self.nowhere.close()


class LevelMesh:
    """The nodes and two routers."""

    def __init__(self, directory: Path) -> None:
        self.config = level_config(directory)
        self.nodes: dict[str, ShardNode] = {}
        self.routers: list[LevelRouter] = []

    async def start(self) -> LevelMesh:
        for name in NODES:
            self.nodes[name] = await ShardNode(self.config, name).start()
        gossip(*self.nodes.values())
        await eventually(lambda: all(node.replica.caught_up for node in self.nodes.values()))
        self.routers = [await LevelRouter(self.config, self.nodes, source).start() for source in (101, 102)]
        return self

    async def stop_nodes(self, *names: str) -> None:
        for name in names:
            await self.nodes.pop(name).stop()

    async def stop(self) -> None:
        for router in self.routers:
            await router.stop()
        await self.stop_nodes(*self.nodes)


def new_document(document_id: str, text: str = "text") -> router_pb2.NewDocument:
    vector = np.zeros(DIM, dtype="<f4")
    vector[len(text) % DIM] = 1.0
    return router_pb2.NewDocument(
        document_id=document_id,
        passages=[
            router_pb2.NewPassage(text=text, vector=passage_pb2.Vector(dim=DIM, data=vector.tobytes())),
        ],
    )
