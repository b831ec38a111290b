"""`python -m services.shard --mesh-file FILE --node NAME`: one shard node, wired from top to bottom."""

from __future__ import annotations

import asyncio
import contextlib

from ostraka.v1.shard_pb2_grpc import add_ShardServiceServicer_to_server
from services.runtime.clock import SYSTEM_CLOCK
from services.runtime.config import Config
from services.runtime.lifecycle import Lifecycle, run_and_exit
from services.runtime.record_store_choice import open_record_store
from services.runtime.server import MeshServer
from services.runtime.tls import Role
from services.shard.background import share_cores
from services.shard.following import Following
from services.shard.introspection import Introspection
from services.shard.measures import Measures
from services.shard.node import Node
from services.shard.search_pool import SearchPool
from services.shard.service import ShardServicer


async def main(config: Config, lifecycle: Lifecycle) -> None:
    """Serve until asked to stop."""
    share_cores()
    store = open_record_store(config)
    node = Node(config, lifecycle.node, await store.read(), SYSTEM_CLOCK)
    pool = SearchPool(config.shard.search_threads, config.shard.search_queue_max, SYSTEM_CLOCK)
    introspection = Introspection(
        node.replicas.values(), node.codecs.stores, lambda: pool.idle, SYSTEM_CLOCK, config.shard.background_cpu
    )
    servicer = ShardServicer(config, node, pool, SYSTEM_CLOCK)
    server = await MeshServer.start(
        config,
        service_name="shard",
        role=Role.SHARD,
        identity=lifecycle.identity,
        address=lifecycle.address,
        servicers=[(add_ShardServiceServicer_to_server, servicer)],
    )
    following: asyncio.Task[None] | None = None
    measures = Measures(node, SYSTEM_CLOCK)
    try:
        await node.open()
        node.start({name: settings.address for name, settings in config.nodes.items()})
        introspection.start()
        following = asyncio.create_task(Following(node, store).run(), name="topology record")
        announcing = asyncio.create_task(_announce(node, server, lifecycle))
        await lifecycle.stop_requested()
        announcing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await announcing
    finally:
        measures.close()
        if following is not None:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
        await store.close()
        await server.stop()
        await asyncio.to_thread(introspection.stop)
        await node.close()
        pool.close()


async def _announce(node: Node, server: MeshServer, lifecycle: Lifecycle) -> None:
    """SERVING is earned: views built, peers heard or given up on."""
    await node.ready()
    await server.set_serving(True)
    lifecycle.serving()


if __name__ == "__main__":
    run_and_exit("shard", main)
