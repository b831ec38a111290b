"""`python -m services.embed --mesh-file F [--index N]`: wires the embed process."""

from __future__ import annotations

import asyncio

from ostraka.v1 import embed_pb2_grpc
from services.embed.batcher import Batcher
from services.embed.batching import Lane, Limits
from services.embed.encoder import SentenceEncoder
from services.embed.model import locate
from services.embed.service import EmbedServicer
from services.runtime.clock import SYSTEM_CLOCK
from services.runtime.config import Config
from services.runtime.deadline import Deadline
from services.runtime.lifecycle import Lifecycle, State, run_and_exit
from services.runtime.server import MeshServer
from services.runtime.tls import Role

SERVICE = "embed"
WARM_UP_MS = 120_000
"""The first pass allocates; a model that cannot do it in this time is not ready."""


async def serve(config: Config, lifecycle: Lifecycle) -> None:
    """Run until asked to stop. SERVING only after the model has embedded something."""
    files = await asyncio.to_thread(locate, config.embed)
    encoder = await asyncio.to_thread(SentenceEncoder, files, threads=config.embed.threads)
    batcher = Batcher(encoder, Limits(config.embed.batch_texts_max, config.embed.queue_texts_max), SYSTEM_CLOCK)
    servicer = EmbedServicer(config.embed, files, encoder, batcher)
    server = await MeshServer.start(
        config,
        service_name=SERVICE,
        role=Role.EMBED,
        identity=lifecycle.identity,
        address=lifecycle.address,
        servicers=[(embed_pb2_grpc.add_EmbedServiceServicer_to_server, servicer)],
    )
    try:
        await batcher.embed(Lane.QUERY, ("warm-up",), Deadline.after_ms(WARM_UP_MS))
        if lifecycle.state is State.STARTING:  # not when a signal came first
            await server.set_serving(True)
            lifecycle.serving()
        await lifecycle.stop_requested()
    finally:
        await server.stop()
        await batcher.close()


if __name__ == "__main__":
    run_and_exit(SERVICE, serve)
