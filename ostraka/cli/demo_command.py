"""`demo`: a mesh, documents, questions, a killed node; exits 0 only if every check held."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer

from ostraka.cli.demo.scenario import Demo, cancel_on_sigterm
from ostraka.cli.demo.stage import DemoFailedError
from ostraka.cli.exit_codes import ExitCode
from ostraka.cli.mesh_file import NODES_DEFAULT, free_ports, mesh_toml, prepare
from ostraka.cli.options import JsonOption
from ostraka.cli.output import CONSOLE, command, print_json, report_error
from ostraka.cli.supervisor import Supervisor
from services.runtime.config import ConfigError, load

_MARK = ".ostraka-demo"
"""Only a folder that holds this is ever emptied."""


@command
async def demo(
    directory: Annotated[Path, typer.Option(help="Where the demonstration keeps its mesh; emptied first.")] = Path(
        ".mesh/demo"
    ),
    as_json: JsonOption = False,
) -> None:
    """Start a mesh of its own, ingest real documents, ask, kill a node, update, heal; then stop everything.

    Takes about three minutes on two cores. Exit code 1 when a check did not hold.
    """
    CONSOLE.quiet = as_json
    cancel_on_sigterm()
    mesh_file = _fresh(directory.absolute())
    config = prepare(mesh_file)
    supervisor = Supervisor(config)
    run = Demo(config, supervisor, directory.absolute() / "corpus")
    try:
        await run.run()
    except DemoFailedError as error:
        report_error(error, as_json=as_json)
        raise typer.Exit(ExitCode.FAILED) from None
    finally:
        CONSOLE.print("stopping everything that was started")
        _stop(supervisor)
    if as_json:
        print_json({"ok": True, "checks": run.stage.checks, "answers": run.answers, "traces": config.traces_dir})


def _stop(supervisor: Supervisor) -> None:
    """Stop gracefully; a second Ctrl-C means now."""
    try:
        supervisor.stop_all()
    except KeyboardInterrupt:
        for name in supervisor.running():
            supervisor.kill(name)
        raise


def _fresh(directory: Path) -> Path:
    """An empty folder with a mesh file on free ports. Raises ConfigError for a folder that holds something else."""
    mesh_file = directory / "mesh.toml"
    if directory.exists() and any(directory.iterdir()):
        if not (directory / _MARK).exists():
            raise ConfigError(f"{directory} is not empty and not a demonstration's; name another with --directory")
        if mesh_file.exists():
            Supervisor(load(mesh_file)).stop_all()
        shutil.rmtree(directory)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / _MARK).touch()
    ports = free_ports(("embed", "router", "generator", *NODES_DEFAULT))
    mesh_file.write_text(mesh_toml("data", ports), encoding="utf-8")
    return mesh_file
