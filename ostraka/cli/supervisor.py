"""Starts, watches and stops the processes of a mesh on this machine.

Every process gets a log in the mesh's logs directory and a record in `data_dir/run` with its id and creation
time; only a process that matches its record is ever signalled. Processes live in sessions of their own, so a
Ctrl-C in the terminal reaches the supervisor alone, which then stops them in order.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ParamSpec, TypeVar

import grpc
import psutil
from grpc_health.v1 import health_pb2, health_pb2_grpc

from ostraka.cli.process_record import ProcessRecord, ended, read_record
from services.runtime.channel import open_channel
from services.runtime.config import Config, ConfigError, child_environment
from services.runtime.tls import Role

KILL_AFTER_S = 8.0
"""Beyond `mesh.drain_s`: a process has this long to close its files after SIGTERM; then it is killed."""
LOG_LINES_SHOWN = 15
_WATCH_S = 0.1
P = ParamSpec("P")
T = TypeVar("T")


class SupervisorError(RuntimeError):
    """A process could not be started, died or did not stop; the message says which and what its log says."""


@dataclass(frozen=True, slots=True)
class Seat:
    """One process of the mesh as configured."""

    name: str
    module: str
    arguments: tuple[str, ...]
    address: str
    role: Role
    threads: int
    """Of numerical libraries."""


@dataclass(frozen=True, slots=True)
class Launch:
    """How one process is started where it differs from the others."""

    prefix: tuple[str, ...] = ()
    """What its command begins with; it must end by executing the rest in its own place, as `ip netns exec NAME` does,
    so that the process keeps its id."""
    mesh_file: Path | None = None
    """Its own mesh file, for a process that sees other addresses; None: the mesh's."""


def _as_configured(_name: str) -> Launch:
    return Launch()


async def to_the_end(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run `work` in a thread, and wait for its end even when cancelled: a thread goes on, and what it starts after
    everything was stopped would stay."""
    task = asyncio.ensure_future(asyncio.to_thread(work, *args, **kwargs))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise


class Supervisor:
    """The processes of one mesh file."""

    def __init__(self, config: Config, launch: Callable[[str], Launch] = _as_configured) -> None:
        """`launch`: asked by name each time a process is started."""
        self.config = config
        self._launch = launch
        self.run_dir = config.data_dir / "run"
        self.seats = {seat.name: seat for seat in _seats(config)}
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    def log_path(self, name: str) -> Path:
        return self.config.logs_dir / f"{name}.log"

    def process(self, name: str) -> psutil.Process | None:
        """The running process of that name, None when it does not run."""
        child = self._children.get(name)
        if child is not None and child.poll() is None:
            # An own child keeps its id until it is waited for: no proof is needed, and none is there before exec.
            try:
                return psutil.Process(child.pid)
            except psutil.NoSuchProcess:  # another thread has waited for it meanwhile
                return None
        record = read_record(self.run_dir, name)
        return None if record is None else record.process()

    def running(self) -> list[str]:
        """Names of the processes that run."""
        return [name for name in self.seats if self.process(name) is not None]

    def start(self, name: str) -> None:
        """Start one process; return at once. Raises SupervisorError when it runs already."""
        seat = self._seat(name)
        if self.process(name) is not None:
            raise SupervisorError(f"{name} is running already")
        self.config.logs_dir.mkdir(parents=True, exist_ok=True)
        log, launch = self.log_path(name), self._launch(name)
        mesh_file = str(launch.mesh_file or self.config.path)
        command = [*launch.prefix, sys.executable, "-m", seat.module, "--mesh-file", mesh_file, *seat.arguments]
        with log.open("ab") as output:
            child = subprocess.Popen(  # noqa: S603 the command is this interpreter and this mesh's own module
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                cwd=self.config.path.parent,
                # Threads that spin at barriers starve when another process wants their core: measured on two cores
                # beside one busy process, a query took 488 ms to embed, and 17 ms with threads that sleep.
                env=child_environment(
                    OMP_NUM_THREADS=str(seat.threads), OMP_WAIT_POLICY="PASSIVE", TOKENIZERS_PARALLELISM="false"
                ),
            )
        self._children[name] = child
        created_s = psutil.Process(child.pid).create_time()
        ProcessRecord(name, child.pid, created_s, seat.module, str(log)).write(self.run_dir)

    @property
    def started(self) -> list[str]:
        """Names of the processes that this object started, in order; some may have ended."""
        return list(self._children)

    def start_all(self) -> list[str]:
        """Start what does not run; the names started."""
        started = []
        with self._locked():
            for name in self.seats:
                if self.process(name) is None:
                    self.start(name)
                    started.append(name)
        return started

    async def wait_serving(self, names: Iterable[str] | None = None, timeout_s: float = 120.0) -> None:
        """Wait until each says SERVING. Raises SupervisorError when one dies first or time runs out."""
        tasks = {asyncio.create_task(self._wait_one(name)): name for name in (self.seats if names is None else names)}
        if not tasks:
            return
        try:
            done, late = await asyncio.wait(tasks, timeout=timeout_s, return_when=asyncio.FIRST_EXCEPTION)
            for task in done:
                task.result()
            if late:
                waiting = sorted(tasks[task] for task in late)
                raise SupervisorError(
                    f"{', '.join(waiting)} not SERVING after {timeout_s:g} s\n{self.log_tail(waiting[0])}"
                )
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _wait_one(self, name: str) -> None:
        seat = self._seat(name)
        async with open_channel(self.config, seat.address, server_role=seat.role, identity=Role.ADMIN.value) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            while True:
                if self.process(name) is None:
                    raise SupervisorError(self._obituary(name))
                try:
                    reply = await stub.Check(health_pb2.HealthCheckRequest(), timeout=1.0)
                except grpc.aio.AioRpcError as error:
                    if error.code() in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
                        raise SupervisorError(f"{name} refuses the admin certificate: {error.details()}") from error
                else:
                    if reply.status == health_pb2.HealthCheckResponse.SERVING:
                        return
                await asyncio.sleep(_WATCH_S)

    def signal(self, name: str, number: signal.Signals) -> None:
        """Send a signal, such as SIGSTOP. Raises SupervisorError when the process does not run."""
        process = self.process(name)
        if process is None:
            raise SupervisorError(f"{name} does not run")
        process.send_signal(number)

    def kill(self, name: str) -> None:
        """SIGKILL, and wait until it is gone."""
        process = self.process(name)
        if process is None:
            raise SupervisorError(f"{name} does not run")
        process.kill()
        self._reap(name, process, KILL_AFTER_S)

    def stop(self, names: Sequence[str]) -> list[str]:
        """SIGTERM to each, then after the drain SIGKILL; the names of those that had to be killed."""
        alive = {name: process for name in names if (process := self.process(name)) is not None}
        for process in alive.values():
            _send(process, signal.SIGTERM)
        killed = []
        patience_ends_s = time.monotonic() + self.config.mesh.drain_s + KILL_AFTER_S
        for name, process in alive.items():
            if not self._reap(name, process, max(0.0, patience_ends_s - time.monotonic())):
                killed.append(name)
                _send(process, signal.SIGKILL)
                self._reap(name, process, KILL_AFTER_S)
        for name in names:
            if (record := read_record(self.run_dir, name)) is not None and record.process() is None:
                record.remove(self.run_dir)
        return killed

    def stop_all(self) -> list[str]:
        """Stop everything, those that call others first; the names of those that had to be killed."""
        callers = [name for name, seat in self.seats.items() if seat.role is Role.ROUTER]
        others = [name for name in self.seats if name not in callers]
        return self.stop(callers) + self.stop(others)

    def log_tail(self, name: str, lines: int = LOG_LINES_SHOWN) -> str:
        """The last lines of a process's log, with its path."""
        path = self.log_path(name)
        try:
            with path.open("rb") as file:
                file.seek(max(0, path.stat().st_size - 16_384))
                last = file.read().decode("utf-8", "replace").splitlines()[-lines:]
        except OSError as error:
            return f"{path}: {error.strerror}"
        return "\n".join([f"last lines of {path}:", *(f"  {line}" for line in last)])

    def _obituary(self, name: str) -> str:
        child = self._children.get(name)
        code = "" if child is None or child.returncode is None else f" with exit code {child.returncode}"
        return f"{name} ended{code} before it was serving\n{self.log_tail(name)}"

    def _reap(self, name: str, process: psutil.Process, timeout_s: float) -> bool:
        """Wait for the end of a process; whether it came."""
        child = self._children.get(name)
        if child is not None and child.pid == process.pid:
            try:
                child.wait(timeout_s)
            except subprocess.TimeoutExpired:
                return False
            return True
        # Somebody else's child may stay a zombie for ever where process 1 does not wait for orphans.
        ends_s = time.monotonic() + timeout_s
        while not ended(process):
            if time.monotonic() >= ends_s:
                return False
            time.sleep(_WATCH_S / 2)
        return True

    def _seat(self, name: str) -> Seat:
        if name not in self.seats:
            raise SupervisorError(f"no process {name!r} in {self.config.path}; known: {', '.join(self.seats)}")
        return self.seats[name]

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One `up` at a time."""
        self.run_dir.mkdir(parents=True, exist_ok=True)
        with (self.run_dir / "lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _send(process: psutil.Process, number: signal.Signals) -> None:
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return


def _seats(config: Config) -> Iterator[Seat]:
    cores = os.cpu_count() or 1
    services = (
        ("embed", Role.EMBED, config.embed.addresses, config.embed.threads or cores),
        ("generator", Role.GENERATOR, config.generator.addresses, 1),
    )
    seats = [
        Seat(f"{service}-{index}", f"services.{service}", ("--index", str(index)), address, role, threads)
        for service, role, addresses, threads in services
        for index, address in enumerate(addresses)
    ]
    seats += [
        Seat(name, "services.shard", ("--node", name), node.address, Role.SHARD, 1)
        for name, node in config.nodes.items()
    ]
    seats += [
        Seat(f"router-{index}", "services.router", ("--index", str(index)), address, Role.ROUTER, 1)
        for index, address in enumerate(config.router.addresses)
    ]
    names = [seat.name for seat in seats]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"[nodes.{name}]: {name!r} is the name of another process; choose another node name")
    yield from seats
