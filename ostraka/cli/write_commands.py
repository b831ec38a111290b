"""`ingest`: files to documents."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from ostraka.cli.exit_codes import ExitCode
from ostraka.cli.options import Acknowledged, CollectionOption, JsonOption, MeshFileOption, WriteLevelOption
from ostraka.cli.output import CONSOLE, ERRORS, command, print_json, print_table
from ostraka.cli.session import client_of
from ostraka.ingest.checkpoint import Checkpoint, checkpoint_path
from ostraka.ingest.chunker import ChunkLimits
from ostraka.ingest.pipeline import IngestLimits, IngestReport, ingest, total_bytes
from services.runtime.config import Config, load

_PROBLEMS_SHOWN = 50


@command
async def ingest_files(
    paths: Annotated[
        list[Path], typer.Argument(help="Files and folders: .txt .md .html .rst .py .jsonl (BEIR, or exported).")
    ],
    words: Annotated[int, typer.Option(min=20, max=2_000, help="Most words of a passage.")] = 180,
    overlap: Annotated[int, typer.Option(min=0, help="Most words repeated from the passage before.")] = 30,
    level: WriteLevelOption = Acknowledged.QUORUM,
    force: Annotated[bool, typer.Option("--force", help="Send also what an earlier run had acknowledged.")] = False,
    collection: CollectionOption = "docs",
    mesh_file: MeshFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Cut files into passages and store them; an interrupted run goes on where it stopped.

    A document's id is its path below the folder named here, that folder's name first; in .jsonl it is `_id`.
    Changed files replace their predecessors. Exit code 1 when a document was not acknowledged; run it again.
    """
    if overlap >= words:
        raise typer.BadParameter("--overlap must be smaller than --words")
    limits = IngestLimits(chunks=ChunkLimits(words_target=words, overlap_words_max=overlap), level=level.level)
    report = await ingest_into(load(mesh_file), paths, collection, limits=limits, force=force, show=not as_json)
    if as_json:
        print_json({"ok": report.ok, **{name: getattr(report, name) for name in report.__slots__}})
    else:
        print_report(report)
    if not report.ok:
        raise typer.Exit(ExitCode.FAILED)


async def ingest_into(
    config: Config, paths: list[Path], collection: str, *, limits: IngestLimits, force: bool = False, show: bool = True
) -> IngestReport:
    """Ingest with a progress bar on stderr."""
    path = checkpoint_path(config.data_dir / "ingest", collection, paths)
    columns = (
        TextColumn("ingest"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[done]}"),
        TimeElapsedColumn(),
    )
    bytes_total = await asyncio.to_thread(total_bytes, paths)
    with Checkpoint(path) as checkpoint, Progress(*columns, console=ERRORS, disable=not show) as progress:
        task = progress.add_task("ingest", total=bytes_total or None, done="")
        began_s = time.monotonic()

        def on_progress(report: IngestReport, size_bytes: int) -> None:
            rate = report.passages / max(1e-3, time.monotonic() - began_s)
            done = f"{report.documents + report.unchanged:,} documents, {report.passages:,} passages, {rate:.0f}/s"
            progress.update(task, advance=size_bytes, done=done)

        async with client_of(config, collection) as client:
            report = await ingest(
                client,
                paths,
                collection=collection,
                checkpoint=checkpoint,
                limits=limits,
                on_progress=on_progress,
                force=force,
            )
        progress.update(task, completed=bytes_total)
    return report


def print_report(report: IngestReport) -> None:
    """What was stored, and what was not and why."""
    CONSOLE.print(
        f"{report.documents:,} documents with {report.passages:,} passages acknowledged, "
        f"{report.unchanged:,} unchanged, {len(report.skipped):,} skipped, {len(report.failed):,} failed"
    )
    if report.truncated_passages:
        CONSOLE.print(f"{report.truncated_passages:,} passages were longer than the embedding model reads")
    for title, problems in (("Skipped", report.skipped), ("Failed; run again to send them", report.failed)):
        if problems:
            print_table(title, ("what", "why"), [(p.name, p.reason) for p in problems[:_PROBLEMS_SHOWN]])
            if len(problems) > _PROBLEMS_SHOWN:
                CONSOLE.print(f"... and {len(problems) - _PROBLEMS_SHOWN:,} more; --json lists all")
