"""`python -m services.generator --mesh-file F [--index N]`: wires the generator process."""

from __future__ import annotations

import logging

from ostraka.v1 import generator_pb2_grpc
from services.generator.backend import Backend, ExtractiveBackend
from services.generator.service import GeneratorServicer, check_budget
from services.runtime.clock import SYSTEM_CLOCK
from services.runtime.config import Config, ConfigError, GeneratorConfig, secret
from services.runtime.lifecycle import Lifecycle, State, run_and_exit
from services.runtime.server import MeshServer
from services.runtime.tls import Role

SERVICE = "generator"


def backend_of(config: GeneratorConfig) -> Backend:
    """The configured backend. Raises ConfigError."""
    if config.backend == "extractive":
        return ExtractiveBackend()
    if config.model == "extractive":
        raise ConfigError("generator.model must name the endpoint's model when generator.backend is openai")
    # Imported here: the SDK takes a second that the default does not need.
    from services.generator.openai_backend import OpenAIBackend

    for name in ("openai", "httpx2", "httpcore2"):
        # At lower levels they log requests, headers included.
        logging.getLogger(name).setLevel(logging.WARNING)
    return OpenAIBackend(config, secret(config.api_key_env), SYSTEM_CLOCK)


async def serve(config: Config, lifecycle: Lifecycle) -> None:
    """Run until asked to stop."""
    check_budget(config.generator)
    backend = backend_of(config.generator)
    servicer = GeneratorServicer(config.generator, backend, SYSTEM_CLOCK)
    server = await MeshServer.start(
        config,
        service_name=SERVICE,
        role=Role.GENERATOR,
        identity=lifecycle.identity,
        address=lifecycle.address,
        servicers=[(generator_pb2_grpc.add_GeneratorServiceServicer_to_server, servicer)],
    )
    try:
        if lifecycle.state is State.STARTING:  # not when a signal came first
            await server.set_serving(True)
            lifecycle.serving()
        await lifecycle.stop_requested()
    finally:
        await server.stop()
        await backend.close()


if __name__ == "__main__":
    run_and_exit(SERVICE, serve)
