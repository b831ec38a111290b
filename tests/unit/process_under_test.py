"""A small process of the mesh for test_runtime_lifecycle: an embed server whose manner of stopping is an argument."""

from __future__ import annotations

import asyncio
import sys

from services.runtime import lifecycle
from services.runtime.config import Config
from services.runtime.lifecycle import Lifecycle, run_process
from services.runtime.server import MeshServer
from services.runtime.tls import Role
from tests.inprocess import generic_servicers

lifecycle.CLOSE_S = 0.2


async def serve(config: Config, life: Lifecycle, manner: str) -> None:
    if manner == "fails":
        raise ValueError("a defect")
    assert type(asyncio.get_running_loop()).__module__.startswith("uvloop")
    server = await MeshServer.start(
        config,
        service_name="embed",
        role=Role.EMBED,
        identity=life.identity,
        address=life.address,
        servicers=generic_servicers(),
    )
    await server.set_serving(True)
    life.serving()
    await life.stop_requested()
    if manner == "hangs":
        await asyncio.Event().wait()
    await server.stop()


if __name__ == "__main__":
    manner, *arguments = sys.argv[1:]
    sys.exit(run_process("embed", "", lambda config, life: serve(config, life, manner), arguments))
