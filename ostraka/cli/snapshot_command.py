"""`snapshot create|list|verify|restore`: the mesh's data in a directory or a bucket, and back."""

from __future__ import annotations

import asyncio
import socket
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from ostraka.cli import snapshot_create
from ostraka.cli.options import JsonOption, MeshFileOption
from ostraka.cli.output import CONSOLE, command, print_json, print_table
from ostraka.cli.supervisor import Supervisor
from services.runtime.config import Config, load
from services.shard.object_store import ObjectStore, ObjectStoreError, open_store
from services.shard.snapshot_format import MESH_FILE, MeshManifest, RestoreRefusedError, SnapshotError

app = typer.Typer(name="snapshot", help="Copies of whole collections in a directory or an S3 bucket.")
Destination: TypeAlias = Annotated[str, typer.Argument(help="A directory, or s3://bucket/prefix.")]
CollectionsOption: TypeAlias = Annotated[
    list[str] | None, typer.Option("--collection", "-c", help="Only these collections; may be repeated.")
]
CONNECT_S = 0.3


@app.command("create")
@command
async def create(
    destination: Destination,
    name: Annotated[str, typer.Option(help="Of the snapshot; the time in UTC when not given.")] = "",
    collection: CollectionsOption = None,
    timeout_s: Annotated[float, typer.Option("--timeout", min=0.001, help="Seconds for all of it.")] = 3_600.0,
    mesh_file: MeshFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Copy one serving replica of every shard while the mesh runs; writes go on. Needs the `admin` certificate.

    The nodes write to the destination themselves: a directory must be one that all of them see.
    """
    config = load(mesh_file)
    chosen = name or datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    place = _absolute(destination)
    made = await snapshot_create.create(config, place, chosen, collection or (), timeout_s, _progress(as_json))
    if as_json:
        print_json(_described(made))
        return
    CONSOLE.print(f"snapshot {made.name}: {made.rows_live} rows, {made.size} bytes in {place}", markup=False)


@app.command("list")
@command
async def list_snapshots(
    destination: Destination, mesh_file: MeshFileOption = None, as_json: JsonOption = False
) -> None:
    """The snapshots at a destination; those without a mesh manifest were never finished."""
    from services.shard.snapshot_restore import read_mesh

    store = _store(destination, load(mesh_file))
    rows: list[dict[str, object]] = []
    for name in await asyncio.to_thread(store.names):
        try:
            if await asyncio.to_thread(store.exists, f"{name}/{MESH_FILE}"):
                rows.append(_described(await asyncio.to_thread(read_mesh, store, name)) | {"problem": ""})
            else:
                rows.append({"name": name, "problem": "not finished"})
        except (SnapshotError, ObjectStoreError) as error:
            rows.append({"name": name, "problem": str(error)})
    if as_json:
        print_json(rows)
        return
    columns = ("name", "created", "collections", "rows", "bytes", "problem")
    print_table("Snapshots", columns, [tuple(row.get(column, "") for column in columns) for row in rows])


@app.command("verify")
@command
async def verify(
    destination: Destination,
    name: Annotated[str, typer.Argument(help="Of the snapshot.")],
    mesh_file: MeshFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Read every object of a snapshot and compare it with its sha256."""
    from services.shard.snapshot_restore import verify_snapshot

    store = _store(destination, load(mesh_file))
    found = await asyncio.to_thread(verify_snapshot, store, name, _progress(as_json))
    if as_json:
        print_json(_described(found))
        return
    CONSOLE.print(f"snapshot {found.name} is sound: {found.rows_live} rows, {found.size} bytes", markup=False)


@app.command("restore")
@command
async def restore(
    destination: Destination,
    name: Annotated[str, typer.Argument(help="Of the snapshot.")],
    collection: CollectionsOption = None,
    mesh_file: MeshFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Put a snapshot's collections in place of what a stopped mesh has, as new replicas.

    What was written after the snapshot is gone from them. The old replicas' directories stay, renamed.
    """
    from services.shard import snapshot_restore

    config = load(mesh_file)
    store = _store(destination, config)
    await asyncio.to_thread(_refuse_running, config)
    work = asyncio.to_thread(snapshot_restore.restore, config, store, name, collection or (), _progress(as_json))
    done = await work
    if as_json:
        print_json(done)
        return
    aside = f"; {len(done.set_aside)} old directories renamed to *{snapshot_restore.ASIDE_SUFFIX}" * bool(
        done.set_aside
    )
    CONSOLE.print(
        f"{', '.join(done.collections)} restored from {name}: {done.rows_live} rows in {done.replicas} new replicas"
        f"{aside}. `ostraka up` starts the mesh.",
        markup=False,
    )


def _absolute(destination: str) -> str:
    if "://" in destination:
        return destination
    return str(Path(destination).expanduser().absolute())


def _store(destination: str, config: Config) -> ObjectStore:
    return open_store(_absolute(destination), config.snapshots.endpoint_url)


def _refuse_running(config: Config) -> None:
    """Raises RestoreRefusedError while any process of the mesh lives or any of its addresses answers."""
    running = Supervisor(config).running()
    if running:
        raise RestoreRefusedError(f"the mesh runs ({', '.join(running)}); `ostraka down` stops it")
    for node, settings in config.nodes.items():
        host, _, port = settings.address.rpartition(":")
        try:
            socket.create_connection((host, int(port)), CONNECT_S).close()
        except OSError:
            continue
        raise RestoreRefusedError(f"something answers at {settings.address}, the address of {node}; stop it first")


def _progress(as_json: bool) -> snapshot_create.Progress:
    return (lambda _: None) if as_json else (lambda line: CONSOLE.print(line, markup=False))


def _described(snapshot: MeshManifest) -> dict[str, object]:
    return {
        "name": snapshot.name,
        "created": datetime.fromtimestamp(snapshot.created_ms / 1_000, UTC).isoformat(timespec="seconds"),
        "collections": ", ".join(sorted(snapshot.collections)),
        "rows": snapshot.rows_live,
        "bytes": snapshot.size,
    }
