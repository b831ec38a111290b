"""Every kind of record store, each over a mesh of its own; a further kind is one more entry."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from services.runtime import topology_file
from services.runtime.config import Config, parse
from services.runtime.record_file import FileRecordStore
from services.runtime.record_store import RecordStore

COLLECTION = "docs"


@dataclass(frozen=True)
class Opened:
    """Stores of two processes over one record, and a way to spoil it so that it cannot be read."""

    config: Config
    one: RecordStore
    other: RecordStore
    spoil: Callable[[bytes], None]
    """Cut the stored record to these bytes, as if a writer without care had died half-way."""


def mesh(directory: Path) -> Config:
    """Four nodes, one collection of two shards with three voters each."""
    rows = {f"n{number}": {"address": f"127.0.0.1:{7410 + number}"} for number in range(4)}
    collections = {COLLECTION: {"shards": 2, "replicas": 3}}
    return parse({"nodes": rows, "collections": collections}, directory / "mesh.toml", {})


@asynccontextmanager
async def _file(directory: Path) -> AsyncIterator[Opened]:
    config = mesh(directory)
    topology_file.bootstrap(config)
    one, other = (FileRecordStore(config, watch_s=0.01) for _ in range(2))
    yield Opened(config, one, other, lambda content: _write(config.topology_path, content))
    await one.close()
    await other.close()


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


KINDS: dict[str, Callable[[Path], AbstractAsyncContextManager[Opened]]] = {"file": _file}
