"""From the command line to the exit code of one process: STARTING, SERVING, DRAINING, STOPPED.

The first SIGTERM or SIGINT begins a bounded drain; a second one means now. Exit codes: 0 stopped as asked,
1 could not start or failed, 2 wrong arguments or configuration.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from importlib.metadata import version
from pathlib import Path
from typing import NoReturn

import uvloop

from observability import logs, metrics, metrics_export, tracing
from observability.logs import LogSettings
from observability.metrics_export import MetricsSettings
from observability.tracing import TracingSettings
from services.runtime.config import Config, ConfigError, load
from services.runtime.errors import StartError

CLOSE_S = 5.0
"""Beyond `mesh.drain_s`, how long a process may take to close its files before it is cut off."""
LAST_WORDS_S = 0.2
_LOG = logs.logger("lifecycle")


class State(Enum):
    """Where a process is in its life."""

    STARTING = "starting"
    SERVING = "serving"
    DRAINING = "draining"
    STOPPED = "stopped"


_MOVES = {
    State.STARTING: {State.SERVING, State.DRAINING, State.STOPPED},
    State.SERVING: {State.DRAINING, State.STOPPED},
    State.DRAINING: {State.STOPPED},
    State.STOPPED: frozenset[State](),
}


@dataclass(frozen=True, slots=True)
class Seat:
    """Which of the mesh's processes this is."""

    identity: str
    """Name of its certificate: the node, or the service."""
    address: str
    """Where it listens."""
    instance: str
    """Told in logs and traces: the node, or the index."""
    index: int = 0
    node: str = ""


class Lifecycle:
    """The state of a process, and the wish to stop it. Create it inside the running loop."""

    def __init__(self, seat: Seat) -> None:
        self.seat = seat
        self.state = State.STARTING
        self._stop = asyncio.Event()

    @property
    def address(self) -> str:
        """Where this process listens, "host:port"."""
        return self.seat.address

    @property
    def identity(self) -> str:
        """Name of this process's certificate."""
        return self.seat.identity

    @property
    def node(self) -> str:
        """Name of the shard node; empty for other services."""
        return self.seat.node

    @property
    def index(self) -> int:
        """Position among the service's addresses; 0 for shard nodes."""
        return self.seat.index

    def serving(self) -> None:
        """The process is ready for work."""
        # What exists by now mostly lives as long as the process: a full collection that looks at it takes 20 ms, and
        # nothing else runs meanwhile.
        gc.collect()
        gc.freeze()
        self._move(State.SERVING)

    def request_stop(self, why: str) -> None:
        """Begin the drain. Asking again changes nothing."""
        if self.state in (State.DRAINING, State.STOPPED):
            return
        _LOG.info("stopping", why=why)
        self._move(State.DRAINING)
        self._stop.set()

    def stopped(self) -> None:
        """Everything is closed."""
        self._move(State.STOPPED)

    async def stop_requested(self) -> None:
        """Wait for the first signal to stop."""
        await self._stop.wait()

    def _move(self, to: State) -> None:
        assert to in _MOVES[self.state], f"a process that is {self.state.value} cannot become {to.value}"
        self.state = to


Main = Callable[[Config, Lifecycle], Awaitable[None]]


def run_process(service_name: str, instance: str, main: Main, argv: Sequence[str] | None = None) -> int:
    """Run `main` until it returns and give the exit code.

    `service_name`: embed, router, generator or shard. `instance`: "" takes the node's name or the index from
    the arguments. `main` starts its server, calls `lifecycle.serving()` when ready, waits for
    `lifecycle.stop_requested()`, then closes everything within `mesh.drain_s` plus CLOSE_S.
    """
    try:
        arguments = _parse(service_name, argv)
        config = load(arguments.mesh_file)
        seat = seat_of(config, service_name, node=arguments.node, index=arguments.index, instance=instance)
        _configure_telemetry(config, service_name, seat)
    except (ConfigError, ValueError, OSError) as error:
        logs.shutdown()
        sys.stderr.write(f"{service_name}: {error}\n")
        return 2
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_supervise(config, seat, main))
    except ConfigError as error:
        logs.shutdown()
        sys.stderr.write(f"{service_name}: {error}\n")
        return 2
    except StartError as error:
        logs.shutdown()
        sys.stderr.write(f"{error}\n")
        return 1
    finally:
        metrics_export.shutdown()
        tracing.shutdown()
        logs.shutdown()


def run_and_exit(service_name: str, main: Main) -> NoReturn:
    """`run_process`, then end the process without tearing the interpreter down.

    Everything is closed and flushed by then; freeing a loaded model object by object takes seconds that only
    whoever waits for the process would notice.
    """
    code = run_process(service_name, "", main)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def seat_of(config: Config, service_name: str, *, node: str = "", index: int = 0, instance: str = "") -> Seat:
    """The seat of one process in the mesh. Raises ConfigError for a node or index the mesh file does not have."""
    if service_name == "shard":
        if node not in config.nodes:
            raise ConfigError(f"--node {node!r} is not in {config.path}; known: {', '.join(config.nodes) or 'none'}")
        return Seat(node, config.nodes[node].address, instance or node, node=node)
    addresses = {
        "embed": config.embed.addresses,
        "router": config.router.addresses,
        "generator": config.generator.addresses,
    }[service_name]
    if not 0 <= index < len(addresses):
        raise ConfigError(f"--index {index}: {config.path} gives {service_name} {len(addresses)} address(es), from 0")
    return Seat(service_name, addresses[index], instance or str(index), index=index)


async def _supervise(config: Config, seat: Seat, main: Main) -> int:
    lifecycle = Lifecycle(seat)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _on_signal, lifecycle, number)
    work = asyncio.ensure_future(main(config, lifecycle))
    stopping = asyncio.ensure_future(lifecycle.stop_requested())
    try:
        await asyncio.wait((work, stopping), return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            await asyncio.wait((work,), timeout=config.mesh.drain_s + CLOSE_S)
        return _outcome(work, lifecycle)
    finally:
        stopping.cancel()


def _outcome(work: asyncio.Future[None], lifecycle: Lifecycle) -> int:
    if not work.done():
        _LOG.error("the drain took too long and is cut off")
        tracing.shutdown()
        _exit_now(1)
    error = None if work.cancelled() else work.exception()
    if isinstance(error, (ConfigError, StartError)):
        raise error
    if error is not None:
        _LOG.exception("the process failed", error)
        return 1
    lifecycle.stopped()
    _LOG.info("stopped")
    return 0


def _on_signal(lifecycle: Lifecycle, number: signal.Signals) -> None:
    if lifecycle.state is not State.DRAINING:
        lifecycle.request_stop(number.name)
        return
    _LOG.warning("second signal: stopping at once", signal=number.name)
    _exit_now(128 + number)


def _exit_now(code: int) -> NoReturn:
    """End the process whatever its tasks and threads are doing; everything acknowledged is on disk already."""
    logs.shutdown(LAST_WORDS_S)
    os._exit(code)


def _parse(service_name: str, argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=f"python -m services.{service_name}")
    parser.add_argument("--mesh-file", type=Path, default=None, help="the mesh file (default: mesh.toml)")
    if service_name == "shard":
        parser.add_argument("--node", required=True, help="name of the node in the mesh file")
        parser.set_defaults(index=0)
    else:
        parser.add_argument("--index", type=int, default=0, help="which of the service's addresses (default: 0)")
        parser.set_defaults(node="")
    return parser.parse_args(argv)


def _configure_telemetry(config: Config, service_name: str, seat: Seat) -> None:
    telemetry = config.telemetry
    logs.configure(LogSettings(service_name, seat.instance, telemetry.log_level))
    tracing.configure(
        TracingSettings(
            service_name=service_name,
            instance=seat.instance,
            version=version("ostraka"),
            traces_dir=config.traces_dir,
            sample_ratio=telemetry.sample_ratio,
            otlp_endpoint=telemetry.otlp_endpoint,
            file_bytes_max=telemetry.file_bytes_max,
            queue_spans_max=telemetry.queue_spans_max,
        )
    )
    metrics_export.configure(
        MetricsSettings(
            service_name=service_name,
            instance=seat.instance,
            version=version("ostraka"),
            scrape_port=scrape_port(config, service_name, seat),
            otlp_endpoint=telemetry.otlp_endpoint,
        )
    )
    metrics.observe(metrics.SPANS_DROPPED, lambda: [(tracing.spans_dropped(), {})])


def scrape_port(config: Config, service_name: str, seat: Seat) -> int:
    """Where this process answers scrapes; 0: nowhere."""
    first = config.telemetry.metrics_port
    if not first:
        return 0
    services = (("embed", config.embed), ("router", config.router), ("generator", config.generator))
    seats = [(name, index) for name, section in services for index in range(len(section.addresses))]
    if service_name == "shard":
        return first + len(seats) + sorted(config.nodes).index(seat.node)
    return first + seats.index((service_name, seat.index))
