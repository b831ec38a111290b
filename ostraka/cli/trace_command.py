"""`trace`: one trace as a waterfall, from the files that the processes of this machine wrote."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from observability.trace_files import read_spans, trace_ids
from observability.waterfall import render
from ostraka.cli.exit_codes import ExitCode
from ostraka.cli.options import JsonOption, MeshFileOption
from ostraka.cli.output import CONSOLE, ERRORS, command, print_json
from services.runtime.config import load
from services.runtime.tls import Role

ID_CHARS_MIN = 4


@command
async def trace(
    trace_id: Annotated[
        str, typer.Argument(help="A trace id, or its beginning; `last` for the last call to a router.")
    ],
    width: Annotated[int, typer.Option(min=0, max=400, help="Columns; 0 fits the terminal.")] = 0,
    mesh_file: MeshFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show a trace as a waterfall. Exit code 1 when there is none, 2 when the beginning fits several.

    With OTEL_EXPORTER_OTLP_ENDPOINT the spans went there instead of into files.
    """
    traces_dir = load(mesh_file).traces_dir
    wanted = "" if trace_id == "last" else trace_id.lower()
    if wanted and (len(wanted) < ID_CHARS_MIN or not set(wanted) <= set("0123456789abcdef")):
        raise typer.BadParameter(f"a trace id is hex digits, at least {ID_CHARS_MIN}, not {trace_id!r}")
    spans = await asyncio.to_thread(read_spans, traces_dir, wanted)
    if not wanted:
        # Nodes that gossip have traces of their own; the last one meant is the last call of a client.
        called = {span.trace_id for span in spans if span.service == Role.ROUTER.value}
        spans = [span for span in spans if span.trace_id in called]
    found = trace_ids(spans)
    if not found:
        ERRORS.print(f"no trace {trace_id} in {traces_dir}", markup=False)
        raise typer.Exit(ExitCode.FAILED)
    if len(found) > 1 and wanted:
        ERRORS.print(f"{trace_id} fits {len(found)} traces: {', '.join(found[:5])}", markup=False)
        raise typer.Exit(ExitCode.USAGE)
    shown = [span for span in spans if span.trace_id == found[-1]]
    if as_json:
        print_json(shown)
        return
    CONSOLE.print(render(shown, width or CONSOLE.width), markup=False, soft_wrap=True)
