"""The yardstick: a server whose only method takes nothing and returns nothing, over the mesh's own TLS.

Run as a process of its own (`python -m benchmarks.empty_rpc MESH_FILE`); it prints its port and serves until its
standard input closes.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import grpc
import uvloop

from services.runtime.config import load
from services.runtime.tls import server_credentials

METHOD = "/ostraka.bench.Empty/Call"


async def _call(request: bytes, _: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
    return request


async def serve(mesh_file: Path) -> None:
    """Serve with the router's certificate on a free port until standard input ends."""
    config = load(mesh_file)
    server = grpc.aio.server()
    _, service, method = METHOD.split("/")
    handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {method: grpc.unary_unary_rpc_method_handler(_call)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    port = server.add_secure_port("127.0.0.1:0", server_credentials(config.certs_dir, "router"))
    await server.start()
    print(port, flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await server.stop(grace=None)


if __name__ == "__main__":
    uvloop.run(serve(Path(sys.argv[1])))
