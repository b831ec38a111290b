"""`python -m services.router --mesh-file F [--index N]`: wires the coordinator and runs it."""

from __future__ import annotations

import asyncio
import secrets

from ostraka.v1.router_pb2_grpc import add_RouterServiceServicer_to_server
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
from services.router.node_links import NodeLinks
from services.router.read_types import ReadTools
from services.router.readiness import wait_until_ready
from services.router.retrieval import Retrieval
from services.router.search_legs import SearchLegs
from services.router.service import RouterServicer
from services.router.status import Status
from services.router.summary_rounds import SummaryRounds
from services.router.wire import SetReader
from services.router.write_back import WriteBack
from services.router.writing import Writing
from services.runtime.channel import ChannelPool
from services.runtime.clock import SYSTEM_CLOCK
from services.runtime.config import Config
from services.runtime.lifecycle import Lifecycle, run_and_exit
from services.runtime.record_store_choice import open_record_store
from services.runtime.server import MeshServer
from services.runtime.tls import Role

BOOT_ID_BITS = 64


async def main(config: Config, lifecycle: Lifecycle) -> None:
    """Run one coordinator until it is told to stop."""
    identity = lifecycle.identity
    store = open_record_store(config)
    catalogue = Catalogue.of(config, await store.read())
    membership = Membership(catalogue, store)
    embed_channels = ChannelPool(config, config.embed.addresses, server_role=Role.EMBED, identity=identity)
    generator_channels = ChannelPool(config, config.generator.addresses, server_role=Role.GENERATOR, identity=identity)
    links = NodeLinks.open(config, identity)

    clock, reader, book, pace = SYSTEM_CLOCK, SetReader(), NodeBook(links.names), HedgePace()
    rounds = SummaryRounds(links, book, reader, clock, 2 * config.router.calls_inflight_max, pace)
    tools = ReadTools(rounds, book, HedgeBudget(), pace, config.router, clock, membership)
    legs = SearchLegs(links, reader, config.router.search_wait_ms, rounds)
    embedder = Embedder(config, embed_channels)
    retrieval = Retrieval(tools, legs)
    # A boot id of 0 would read as "no source" on the wire.
    writing = Writing(config, links, book, rounds, membership, clock, source=secrets.randbits(BOOT_ID_BITS) or 1)
    servicer = RouterServicer(
        config,
        catalogue,
        embedder,
        retrieval,
        Lookup(links, reader, tools),
        Ingest(embedder),
        writing,
        Asking(config, embedder, retrieval, Generation(generator_channels)),
        Status(catalogue, links, (("embed", embed_channels), ("generator", generator_channels)), embedder),
        Listing(links, reader, tools),
        KeyedWrites(links, WriteBack(links, config.router.search_wait_ms), membership),
    )
    server = await MeshServer.start(
        config,
        service_name="router",
        role=Role.ROUTER,
        identity=identity,
        address=lifecycle.address,
        servicers=((add_RouterServiceServicer_to_server, servicer),),
    )
    following = asyncio.create_task(membership.follow(), name="topology record")
    ready = asyncio.ensure_future(wait_until_ready(catalogue, rounds, membership, embedder, clock))
    stopping = asyncio.ensure_future(lifecycle.stop_requested())
    await asyncio.wait((ready, stopping), return_when=asyncio.FIRST_COMPLETED)
    if ready.done() and not stopping.done():
        ready.result()
        await server.set_serving(True)
        lifecycle.serving()
    await stopping
    ready.cancel()
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)
    await store.close()
    await server.stop()
    await writing.close()
    await legs.close()
    await rounds.close()
    await asyncio.gather(links.close(), embed_channels.close(), generator_channels.close())


if __name__ == "__main__":
    run_and_exit("router", main)
