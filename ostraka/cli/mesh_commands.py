"""`up`, `down`, `status`, `certs`: the mesh on this machine."""

from __future__ import annotations

import asyncio

import typer

from ostraka.cli.exit_codes import ExitCode
from ostraka.cli.health_tables import print_health
from ostraka.cli.mesh_file import prepare, write_default
from ostraka.cli.options import JsonOption, MeshFileOption, TimeoutOption
from ostraka.cli.output import CONSOLE, command, print_json, print_table, report_error
from ostraka.cli.session import client_of
from ostraka.cli.supervisor import Supervisor, to_the_end
from ostraka.errors import OstrakaError
from ostraka.mesh_status import MeshStatus
from services.runtime.config import load, mesh_file_path
from services.runtime.tls import dev_certificates


@command
async def up(
    timeout_s: TimeoutOption = 120.0,
    mesh_file: MeshFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Start the mesh in the background; write a default mesh file, certificates and topology where they lack.

    Processes that run already are left alone. If one cannot start, those started by this call are stopped again.
    """
    path = mesh_file_path(mesh_file)
    if write_default(path) and not as_json:
        CONSOLE.print(f"wrote {path}", markup=False)
    config = prepare(path)
    supervisor = Supervisor(config)
    try:
        started = await to_the_end(supervisor.start_all)
        await supervisor.wait_serving(timeout_s=timeout_s)
    except BaseException:
        await to_the_end(supervisor.stop, supervisor.started)
        raise
    if as_json:
        print_json({"started": started, "running": supervisor.running(), "routers": config.router.addresses})
        return
    CONSOLE.print(
        f"{len(started)} processes started, {len(supervisor.seats)} serving; routers at "
        f"{', '.join(config.router.addresses)}, logs in {config.logs_dir}, traces in {config.traces_dir}",
        markup=False,
    )


@command
async def down(mesh_file: MeshFileOption = None, as_json: JsonOption = False) -> None:
    """Stop every process that `up` started, gracefully within a bounded time; data stays."""
    supervisor = Supervisor(load(mesh_file))
    running = supervisor.running()
    killed = await asyncio.to_thread(supervisor.stop_all)
    if as_json:
        print_json({"stopped": running, "killed": killed})
        return
    CONSOLE.print(f"{len(running)} processes stopped" + (f", killed: {', '.join(killed)}" if killed else ""))


@command
async def status(timeout_s: TimeoutOption = 5.0, mesh_file: MeshFileOption = None, as_json: JsonOption = False) -> None:
    """Processes, services, nodes, replicas, their health and memory.

    Exit code 1 when something is missing, 3 without a router.
    """
    config = load(mesh_file)
    supervisor = Supervisor(config)
    processes = {name: process.pid if (process := supervisor.process(name)) else None for name in supervisor.seats}
    try:
        async with client_of(config) as client:
            mesh = await client.status(timeout_s=timeout_s)
    except OstrakaError as error:
        if as_json:
            print_json({"processes": processes, "mesh": None})
        else:
            _print_processes(supervisor, processes)
        report_error(error, as_json=as_json)
        raise typer.Exit(ExitCode.UNAVAILABLE) from None
    if as_json:
        print_json({"processes": processes, "mesh": mesh})
    else:
        _print_processes(supervisor, processes)
        print_mesh(mesh)
        print_health(mesh)
    if not all(node.reachable for node in mesh.nodes) or not all(service.serving for service in mesh.services):
        raise typer.Exit(ExitCode.FAILED)


@command
async def certs(mesh_file: MeshFileOption = None, as_json: JsonOption = False) -> None:
    """Make a development CA and a certificate for each process, `client` and `admin`; good ones stay."""
    path = mesh_file_path(mesh_file)
    if write_default(path) and not as_json:
        CONSOLE.print(f"wrote {path}", markup=False)
    config = load(path)
    written = dev_certificates(config)
    if as_json:
        print_json({"directory": config.certs_dir, "written": written})
        return
    CONSOLE.print(f"{len(written)} certificates written to {config.certs_dir}", markup=False)


def print_mesh(mesh: MeshStatus) -> None:
    """Services, collections and replicas as the router sees them."""
    rows: list[tuple[object, ...]] = [(s.service, s.address, s.serving, s.error) for s in mesh.services]
    rows += [(node.node, node.address, node.reachable, node.error) for node in mesh.nodes]
    print_table("Servers", ("name", "address", "reachable", "error"), rows)
    replicas: list[tuple[object, ...]] = [
        (
            replica.collection,
            replica.shard,
            node.node,
            replica.replica[:8],
            "learner" if replica.learner else "voter",
            f"{replica.epoch} frozen" if replica.frozen else replica.epoch,
            replica.state,
            replica.batches_applied,
            replica.index_epoch,
            replica.documents_live,
            replica.rows_live,
            replica.message,
        )
        for node in mesh.nodes
        for replica in node.replicas
    ]
    columns = (
        "collection",
        "shard",
        "node",
        "replica",
        "role",
        "epoch",
        "state",
        "batches",
        "index epoch",
        "documents",
        "rows",
        "message",
    )
    print_table("Replicas", columns, sorted(replicas, key=lambda row: (row[0], row[1], row[2])))


def _print_processes(supervisor: Supervisor, processes: dict[str, int | None]) -> None:
    rows: list[tuple[object, ...]] = [
        (name, supervisor.seats[name].address, "-" if pid is None else str(pid)) for name, pid in processes.items()
    ]
    print_table("Processes", ("name", "address", "pid"), rows)
