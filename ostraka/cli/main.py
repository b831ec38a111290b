"""The `ostraka` command.

Exit codes: 0 done; 1 failed; 2 wrong arguments, configuration or request; 3 the mesh cannot be reached;
4 the mesh refuses this certificate; 130 interrupted.
"""

from __future__ import annotations

import typer

from ostraka.cli import (
    demo_command,
    document_commands,
    mesh_commands,
    query_commands,
    rebalance_command,
    replica_commands,
    snapshot_command,
    trace_command,
    tune_command,
    write_commands,
)

_EPILOG = (
    "Exit codes: 0 done, 1 failed, 2 wrong arguments, configuration or request, 3 the mesh cannot be reached, "
    "4 the mesh refuses this certificate, 130 interrupted."
)

app = typer.Typer(
    name="ostraka",
    help="A retrieval-augmented generation mesh whose every answer can be checked.",
    epilog=_EPILOG,
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    add_completion=False,
)

_MESH = "The mesh"
_QUESTIONS = "Questions"
_DOCUMENTS = "Documents"
app.command("demo", rich_help_panel=_MESH)(demo_command.demo)
app.command("up", rich_help_panel=_MESH)(mesh_commands.up)
app.command("down", rich_help_panel=_MESH)(mesh_commands.down)
app.command("status", rich_help_panel=_MESH)(mesh_commands.status)
app.command("certs", rich_help_panel=_MESH)(mesh_commands.certs)
app.add_typer(snapshot_command.app, name="snapshot", rich_help_panel=_MESH)
app.command("rebalance", rich_help_panel=_MESH)(rebalance_command.rebalance)
app.add_typer(replica_commands.app, name="replica", rich_help_panel=_MESH)
app.command("tune", rich_help_panel=_MESH)(tune_command.tune)
app.command("ingest", rich_help_panel=_DOCUMENTS)(write_commands.ingest_files)
app.command("get", rich_help_panel=_DOCUMENTS)(query_commands.get)
app.command("list", rich_help_panel=_DOCUMENTS)(document_commands.list_documents)
app.command("export", rich_help_panel=_DOCUMENTS)(document_commands.export)
app.command("delete", rich_help_panel=_DOCUMENTS)(document_commands.delete)
app.command("ask", rich_help_panel=_QUESTIONS)(query_commands.ask)
app.command("search", rich_help_panel=_QUESTIONS)(query_commands.search)
app.command("trace", rich_help_panel=_QUESTIONS)(trace_command.trace)


def main() -> None:
    """Entry point of the installed command."""
    app()
