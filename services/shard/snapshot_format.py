"""What a snapshot is in a store: manifests that name every object with its sha256 and size. Pure.

    NAME/mesh.json                                  every shard's manifest with its sha256; written last
    NAME/COLLECTION/SHARD/REPLICA/manifest.json     every file below it; written after them
    NAME/COLLECTION/SHARD/REPLICA/replica.db        the database at one committed state
    NAME/COLLECTION/SHARD/REPLICA/segments/...      segments that this very database names
    NAME/COLLECTION/SHARD/REPLICA/codecs/...        codecs that those segments name, and the current one

A snapshot without mesh.json is not one: it was never finished. Manifests are read strictly: bytes that are not exactly
what `to_bytes` makes of their content are refused, so a flipped bit cannot hide between two spellings of one value.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

FORMAT = 1
MESH_FILE = "mesh.json"
MANIFEST_FILE = "manifest.json"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class SnapshotError(Exception):
    """A snapshot cannot be taken, read or restored; the message says why."""


class SnapshotDamagedError(SnapshotError):
    """A manifest is not what was written, or of a format that this version does not read."""


class RestoreRefusedError(SnapshotError):
    """The snapshot does not fit the mesh, or the mesh is not in a state to take it. Nothing was changed."""


@dataclass(frozen=True, slots=True)
class SnapshotFile:
    """One file of a replica."""

    path: str
    """Relative to the replica's directory, and to the manifest."""
    sha256: str
    size: int


@dataclass(frozen=True, slots=True)
class CodecEntry:
    """A codec among the files; see codecs.CodecRecord."""

    generation: int
    sha256: str
    factory: str
    trained_rows: int
    basis_rows: int
    error_basis: float
    imbalance_basis: float


@dataclass(frozen=True, slots=True)
class ShardManifest:
    """One replica of one shard at one committed state."""

    format: int
    collection: str
    shard: int
    replica: str
    """The replica that was read. It never lives again: a restore makes new ones."""
    epoch: int
    applied: Mapping[str, list[list[int]]]
    """The applied set: source in decimal to intervals [first, last]."""
    hlc_max: int
    rows_live: int
    digest: str
    """Of the live rows, as replicas compare it: 32 hex digits."""
    dim: int
    embedding_model: str
    embedding_revision: str
    codecs: list[CodecEntry]
    created_ms: int
    files: list[SnapshotFile]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    def to_bytes(self) -> bytes:
        return _canonical(asdict(self))


@dataclass(frozen=True, slots=True)
class ShardEntry:
    """A shard's manifest as the mesh's manifest names it."""

    manifest: str
    """Key, relative to the destination."""
    sha256: str
    replica: str
    rows_live: int
    size: int
    """Bytes of all files."""


@dataclass(frozen=True, slots=True)
class CollectionEntry:
    """One collection: what a mesh must agree with to take it, and its shards."""

    dim: int
    embedding_model: str
    embedding_revision: str
    buckets: list[int]
    """Bucket to shard; the rows were placed by it."""
    shards: Mapping[str, ShardEntry]
    """By shard number in decimal."""


@dataclass(frozen=True, slots=True)
class MeshManifest:
    """A whole snapshot."""

    format: int
    name: str
    created_ms: int
    collections: Mapping[str, CollectionEntry]

    @property
    def rows_live(self) -> int:
        return sum(shard.rows_live for each in self.collections.values() for shard in each.shards.values())

    @property
    def size(self) -> int:
        """Bytes of all shards' files."""
        return sum(shard.size for each in self.collections.values() for shard in each.shards.values())

    def to_bytes(self) -> bytes:
        """With its own sha256, since nothing else names it."""
        content = asdict(self)
        return _canonical({"manifest": content, "sha256": hashlib.sha256(_canonical(content)).hexdigest()})


M = TypeVar("M", ShardManifest, MeshManifest)


def is_name(text: str) -> bool:
    """Whether a snapshot may be called so: 1 to 64 letters, digits, `.`, `-`, `_`, not beginning with a mark."""
    return _NAME.fullmatch(text) is not None


def prefix_of(name: str, collection: str, shard: int, replica: str) -> str:
    """The prefix of a replica's objects, without the last slash."""
    return f"{name}/{collection}/{shard}/{replica}"


def shard_manifest(data: bytes, where: str) -> ShardManifest:
    """Raises SnapshotDamagedError, naming `where` it came from."""
    raw = _parsed(data, where)
    try:
        files = [SnapshotFile(**each) for each in raw["files"]]
        codecs = [CodecEntry(**each) for each in raw["codecs"]]
        made = ShardManifest(**{**raw, "files": files, "codecs": codecs})
    except (KeyError, TypeError) as error:
        raise SnapshotDamagedError(f"{where}: {error!r}") from error
    return _strict(made, data, where)


def mesh_manifest(data: bytes, where: str) -> MeshManifest:
    """Raises SnapshotDamagedError, naming `where` it came from."""
    raw = _parsed(data, where)
    try:
        content = raw["manifest"]
        collections = {
            name: CollectionEntry(
                **{**each, "shards": {shard: ShardEntry(**entry) for shard, entry in each["shards"].items()}}
            )
            for name, each in content["collections"].items()
        }
        made = MeshManifest(**{**content, "collections": collections})
    except (KeyError, TypeError, AttributeError) as error:
        raise SnapshotDamagedError(f"{where}: {error!r}") from error
    return _strict(made, data, where)


def _strict(made: M, data: bytes, where: str) -> M:
    if made.format != FORMAT:
        raise SnapshotDamagedError(f"{where}: format {made.format!r}, this version reads {FORMAT}")
    if made.to_bytes() != data:
        raise SnapshotDamagedError(f"{where}: not what was written")
    return made


def _parsed(data: bytes, where: str) -> dict[str, Any]:
    try:
        raw = json.loads(data)
    except ValueError as error:
        raise SnapshotDamagedError(f"{where}: {error}") from error
    if not isinstance(raw, dict):
        raise SnapshotDamagedError(f"{where}: not an object")
    return raw


def _canonical(content: Any) -> bytes:
    return json.dumps(content, sort_keys=True, indent=1, ensure_ascii=True).encode() + b"\n"
