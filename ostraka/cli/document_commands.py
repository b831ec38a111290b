"""`list`, `export`, `delete`: whole documents."""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import aclosing
from pathlib import Path
from typing import Annotated, TextIO

import typer

from ostraka.cli.exit_codes import ExitCode
from ostraka.cli.options import (
    Acknowledged,
    CollectionOption,
    ConsistencyOption,
    JsonOption,
    KeyOption,
    Level,
    MeshFileOption,
    StalenessOption,
    TimeoutOption,
    WhereOption,
    WriteLevelOption,
)
from ostraka.cli.output import CONSOLE, ERRORS, command, print_json, print_table, print_weak
from ostraka.cli.session import client_of, open_client
from ostraka.client import Client
from ostraka.filters import FilterLike
from ostraka.ingest.checkpoint import forget
from ostraka.ingest.exported import to_record
from ostraka.results import DocumentWrite
from services.runtime.config import load

_COUNT_PAGE = 1_000


@command
async def list_documents(
    where: WhereOption = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="Most documents to show.")] = 100,
    after: Annotated[str, typer.Option("--page", help="Go on where an earlier list ended: its page token.")] = "",
    consistency: ConsistencyOption = Level.QUORUM,
    max_staleness_ms: StalenessOption = 0,
    collection: CollectionOption = "docs",
    timeout_s: TimeoutOption = 10.0,
    mesh_file: MeshFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """List documents in the order of their ids. With --json, one page: its documents and the next page's token."""
    async with open_client(mesh_file, collection) as client:
        page = await client.list_documents(
            where,
            page_size=min(limit, _COUNT_PAGE),
            page_token=after,
            consistency=consistency.consistency,
            max_staleness_ms=max_staleness_ms,
            timeout_s=timeout_s,
        )
    if as_json:
        print_json(page)
        return
    rows = [
        (d.document_id, d.passages, str(d.version), d.source, json.dumps(dict(d.metadata), ensure_ascii=False))
        for d in page.documents
    ]
    print_table(f"{len(rows)} documents", ("document", "passages", "version", "source", "metadata"), rows)
    if page.next_page_token:
        CONSOLE.print(f"there are more: --page {page.next_page_token}", markup=False, soft_wrap=True)


@command
async def export(
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write; - is standard output.")],
    where: WhereOption = None,
    vectors: Annotated[bool, typer.Option("--vectors", help="Write vectors too, so an import needs no model.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that exists.")] = False,
    consistency: ConsistencyOption = Level.QUORUM,
    max_staleness_ms: StalenessOption = 0,
    collection: CollectionOption = "docs",
    timeout_s: TimeoutOption = 30.0,
    mesh_file: MeshFileOption = None,
) -> None:
    """Write whole documents, one line of JSON each, ascending by id; `ostraka ingest` reads them back.

    --timeout is the longest wait for the next document. A file appears under its name when it is complete.
    """
    if output == Path("-"):
        async with open_client(mesh_file, collection) as client:
            await _write_documents(client, sys.stdout, where, vectors, consistency, max_staleness_ms, timeout_s)
        return
    if output.exists() and not force:
        raise typer.BadParameter(f"{output} exists; --force replaces it", param_hint="--output")
    partial = output.with_name(f"{output.name}.partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            async with open_client(mesh_file, collection) as client:
                written = await _write_documents(client, file, where, vectors, consistency, max_staleness_ms, timeout_s)
        partial.replace(output)
    except OSError as error:
        raise typer.BadParameter(f"{output}: {error.strerror or error}", param_hint="--output") from None
    finally:
        partial.unlink(missing_ok=True)
    ERRORS.print(f"{written:,} documents written to {output}", markup=False)


@command
async def delete(
    ids: Annotated[list[str] | None, typer.Argument(help="Document ids.")] = None,
    source: Annotated[str, typer.Option("--source", help="Delete every document of this source.")] = "",
    where: WhereOption = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    level: WriteLevelOption = Acknowledged.QUORUM,
    key: KeyOption = "",
    collection: CollectionOption = "docs",
    timeout_s: TimeoutOption = 10.0,
    mesh_file: MeshFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Delete whole documents: those named, those of a source, or those with a passage that meets a condition.

    By source or condition they are counted first, and nothing is deleted without a yes. Exit code 1 when a deletion was
    not acknowledged.
    """
    if sum(map(bool, (ids, source, where))) != 1:
        raise typer.BadParameter("name documents, or give --source, or --where: exactly one of them")
    if key and not ids:
        raise typer.BadParameter(
            "what a condition names may differ the next time; name documents", param_hint="--idempotency-key"
        )
    config = load(mesh_file)
    meaning, weak = "", False
    async with client_of(config, collection) as client:
        if ids:
            result = await client.delete(ids, level=level.level, idempotency_key=key, timeout_s=timeout_s, check=False)
            deleted, meaning, weak = list(result.documents), result.meaning, result.weak
        else:
            condition: FilterLike = where if where is not None else {"source": source}
            if not yes:
                await _confirm(client, condition, as_json=as_json)
            deleted = []
            matching = client.delete_matching(condition, level=level.level, timeout_s=timeout_s, check=False)
            async with aclosing(matching) as results:
                async for result in results:
                    deleted += result.documents
                    meaning, weak = result.meaning, result.weak
    forget(config.data_dir / "ingest", [document.document_id for document in deleted])
    failed = [document for document in deleted if not document.acknowledged]
    if as_json:
        print_json({"documents": deleted, "acknowledged": len(deleted) - len(failed), "failed": len(failed)})
    else:
        _print_deleted(deleted, failed, named=bool(ids))
        if level is not Acknowledged.QUORUM and len(failed) < len(deleted):
            CONSOLE.print(f"acknowledged at level {level}: {meaning}", markup=False)
        print_weak(weak)
    if failed:
        raise typer.Exit(ExitCode.FAILED)


async def _write_documents(
    client: Client,
    file: TextIO,
    where: str | None,
    vectors: bool,
    level: Level,
    max_staleness_ms: int,
    timeout_s: float,
) -> int:
    """How many were written; disk and mesh take turns, so that neither waits in memory for the other."""
    written = 0
    stream = client.export(
        where,
        include_vectors=vectors,
        consistency=level.consistency,
        max_staleness_ms=max_staleness_ms,
        timeout_s=timeout_s,
    )
    async with aclosing(stream) as documents:
        async for document in documents:
            file.write(json.dumps(to_record(document), ensure_ascii=False) + "\n")
            written += 1
    file.flush()
    return written


async def _confirm(client: Client, where: FilterLike, *, as_json: bool) -> None:
    """Count, and ask. Raises typer.Exit unless the answer is yes."""
    if as_json or not sys.stdin.isatty():
        raise typer.BadParameter("without a terminal to ask, --yes is needed", param_hint="--yes")
    count, first = 0, ""
    async with aclosing(client.documents(where, page_size=_COUNT_PAGE)) as documents:
        async for document in documents:
            count += 1
            first = first or document.document_id
    if not count:
        CONSOLE.print("no document matches")
        raise typer.Exit(ExitCode.OK)
    question = f"Delete {count:,} documents, first {first!r}?"
    if not await asyncio.to_thread(typer.confirm, question):
        CONSOLE.print("nothing was deleted")
        raise typer.Exit(ExitCode.FAILED)


def _print_deleted(deleted: list[DocumentWrite], failed: list[DocumentWrite], *, named: bool) -> None:
    columns = ("document", "outcome", "version", "acks", "reason")
    shown = deleted if named else failed
    if shown:
        rows = [(d.document_id, d.outcome.name, str(d.version), d.acks, d.reason) for d in shown]
        print_table("Deleted" if named else "Not acknowledged", columns, rows)
    if not named:
        CONSOLE.print(f"{len(deleted) - len(failed):,} documents deleted")
