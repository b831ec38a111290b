"""Verifying snapshots, and restoring whole shards from one into a mesh that is not running.

A replica never comes back under its own id, since it would vote as if it still had what it acknowledged. So a restore
makes new replicas, all voters of a shard from the same copy, and the topology record names them under a higher epoch.
Their applied sets are equal and their digests too: the quorum of the new epoch begins in agreement, and nothing that
was purged before the snapshot can return, because no voter has an older state (quorum.md section 14, learners).

What was written after the snapshot is gone from the restored shards, acknowledged or not; session tokens that name such
batches are answered UNAVAILABLE, because no voter of the new epoch can ever deliver them, and clients begin new
sessions. Writes under way when the mesh was stopped carry the old epoch and are refused. New versions are chosen above
the wall clock, thus above those that were lost.

Everything is verified and built beside what is there; the one step that changes the mesh is the topology record's
rename. Before it nothing has changed; after it only the old directories remain to be renamed aside.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from services.runtime import topology_file
from services.runtime.config import Config
from services.runtime.topology import CollectionTopology, Voter
from services.shard import files
from services.shard.codecs import CodecRecord, CodecRefusedError, CodecStore
from services.shard.engine import DATABASE_FILE
from services.shard.faiss_index import Kind
from services.shard.node_codecs import CODECS_DIR, index_family
from services.shard.object_store import ObjectDamagedError, ObjectStore, fetch, read_small, verify
from services.shard.rows_reader import RowsReader
from services.shard.snapshot_format import (
    MANIFEST_FILE,
    MESH_FILE,
    CollectionEntry,
    MeshManifest,
    RestoreRefusedError,
    ShardManifest,
    SnapshotDamagedError,
    mesh_manifest,
    shard_manifest,
)
from services.shard.store import Database

STAGING_DIR = "restore.tmp"
LISTING_FILE = "made.json"
"""In it: the directories made so far."""
ASIDE_SUFFIX = ".replaced"
Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Restored:
    """What a restore did."""

    collections: tuple[str, ...]
    replicas: int
    rows_live: int
    """Of one replica of each shard, summed."""
    set_aside: tuple[Path, ...]
    """Directories of the replicas that were replaced, renamed."""


@dataclass(frozen=True, slots=True)
class Shard:
    """A shard of a snapshot: its verified manifest, and the prefix that its files' keys begin with."""

    manifest: ShardManifest
    prefix: str


def read_mesh(store: ObjectStore, name: str) -> MeshManifest:
    """The snapshot's manifest. Raises SnapshotDamagedError, ObjectStoreError."""
    key = f"{name}/{MESH_FILE}"
    found = mesh_manifest(read_small(store, key), key)
    if found.name != name:
        raise SnapshotDamagedError(f"{key}: it is of snapshot {found.name!r}")
    return found


def read_shards(store: ObjectStore, collection: str, entry: CollectionEntry) -> Mapping[int, Shard]:
    """The manifests of a collection's shards, verified. Raises SnapshotDamagedError, ObjectStoreError."""
    found = {}
    for number, shard in entry.shards.items():
        manifest = shard_manifest(read_small(store, shard.manifest, shard.sha256), shard.manifest)
        if (manifest.collection, str(manifest.shard)) != (collection, number):
            raise SnapshotDamagedError(f"{shard.manifest}: of shard {manifest.shard} of {manifest.collection!r}")
        for file in manifest.files:
            if not all(part and part not in (".", "..") for part in file.path.split("/")):
                raise SnapshotDamagedError(f"{shard.manifest}: {file.path!r} is not a path below the replica")
        found[int(number)] = Shard(manifest, shard.manifest.removesuffix(f"/{MANIFEST_FILE}"))
    if sorted(found) != list(range(len(entry.shards))) or set(entry.buckets) - set(found):
        raise SnapshotDamagedError(f"{collection!r}: shards {sorted(found)} do not fit the bucket table")
    return found


def verify_snapshot(store: ObjectStore, name: str, progress: Progress = lambda _: None) -> MeshManifest:
    """Read every object to its end. Raises SnapshotDamagedError, ObjectDamagedError, ObjectStoreError."""
    mesh = read_mesh(store, name)
    for collection, entry in mesh.collections.items():
        for number, shard in read_shards(store, collection, entry).items():
            for file in shard.manifest.files:
                verify(store, f"{shard.prefix}/{file.path}", file.sha256, file.size)
            progress(f"{collection} shard {number}: {len(shard.manifest.files)} files, {shard.manifest.size} bytes")
    return mesh


def restore(
    config: Config,
    store: ObjectStore,
    name: str,
    collections: Sequence[str] = (),
    progress: Progress = lambda _: None,
) -> Restored:
    """Replace collections (none named: all of the snapshot) by what the snapshot holds. The mesh must be stopped.

    Raises RestoreRefusedError, SnapshotDamagedError, ObjectStoreError, ConfigError, StoreError, OSError; then nothing
    was changed.
    """
    mesh = read_mesh(store, name)
    wanted = collections or sorted(mesh.collections)
    shards = {}
    for collection in wanted:
        check_fits(config, mesh, collection)
        shards[collection] = read_shards(store, collection, mesh.collections[collection])
    files.make_directory(config.data_dir)
    with topology_file.changing(config) as record, _staging(config) as staging, _new_replicas(staging) as made:
        planned = {
            collection: record.planned(
                collection,
                mesh.collections[collection].buckets,
                {number: shard.manifest.epoch for number, shard in shards[collection].items()},
            )
            for collection in wanted
        }
        for collection, topology in planned.items():
            for number, shard in shards[collection].items():
                copy = _download(store, shard, staging / collection / str(number))
                for voter in topology.shards[number].voters:
                    made.add(config.replica_dir(voter.node, voter.replica_id))
                    _make_replica(config, copy, shard.manifest, voter)
                progress(f"{collection} shard {number}: {shard.manifest.rows_live} rows, {shard.manifest.size} bytes")
        for collection, topology in planned.items():
            _offer_codecs(config, collection, topology, shards[collection].values(), staging)
        replaced = record.replace(planned)
        made.clear()  # they belong to the mesh now
    aside = tuple(_set_aside(config, voter) for voter in replaced)
    manifests = [shard.manifest for found in shards.values() for shard in found.values()]
    return Restored(
        collections=tuple(wanted),
        replicas=sum(len(members.voters) for each in planned.values() for members in each.shards.values()),
        rows_live=sum(manifest.rows_live for manifest in manifests),
        set_aside=tuple(path for path in aside if path is not None),
    )


def check_fits(config: Config, mesh: MeshManifest, collection: str) -> None:
    """Raises RestoreRefusedError naming what differs."""
    entry, settings = mesh.collections.get(collection), config.collections.get(collection)
    if entry is None:
        known = ", ".join(sorted(mesh.collections))
        raise RestoreRefusedError(f"snapshot {mesh.name!r} has no collection {collection!r}; it has {known}")
    if settings is None:
        raise RestoreRefusedError(f"{config.path} has no [collections.{collection}]; add it, or name others")
    facts = {
        "dim": (settings.dim, entry.dim),
        "embedding_model": (settings.embedding_model, entry.embedding_model),
        "shards": (settings.shards, len(entry.shards)),
    }
    if settings.embedding_revision and entry.embedding_revision:
        facts["embedding_revision"] = (settings.embedding_revision, entry.embedding_revision)
    for key, (ours, theirs) in facts.items():
        if ours != theirs:
            where = f"collections.{collection}.{key}"
            raise RestoreRefusedError(f"{where} is {ours!r} in {config.path} but {theirs!r} in snapshot {mesh.name!r}")


def _download(store: ObjectStore, shard: Shard, target: Path) -> Path:
    """All files of a shard, verified, below `target`. Raises ObjectStoreError, OSError."""
    for file in shard.manifest.files:
        path = target / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        fetch(store, f"{shard.prefix}/{file.path}", path, file.sha256, file.size)
    if not (target / DATABASE_FILE).is_file():
        raise ObjectDamagedError(f"{shard.prefix}: no {DATABASE_FILE} among the files")
    return target


def _make_replica(config: Config, copy: Path, manifest: ShardManifest, voter: Voter) -> None:
    """A replica's directory from a copy, durable, under the voter's new id. Raises StoreError, OSError."""
    directory = topology_file.make_replica(config, manifest.collection, manifest.shard, voter)
    for path in sorted(copy.rglob("*")):
        relative = path.relative_to(copy)
        if relative.parts[0] == CODECS_DIR:
            continue  # of the node, not of the replica
        if path.is_dir():
            (directory / relative).mkdir()
        else:
            shutil.copyfile(path, directory / relative)  # never a link: replicas share no bytes on disk
    _rename_replica(directory / DATABASE_FILE, manifest, voter.replica_id)
    for path in (*directory.rglob("*"), directory, directory.parent):
        if path.is_dir():
            files.sync_directory(path)
        else:
            files.sync_file(path)


def _rename_replica(path: Path, manifest: ShardManifest, replica_id: str) -> None:
    """Make the database the new replica's own. Raises SnapshotDamagedError when it is not what the manifest says."""
    database = Database(path, writable=True)
    try:
        reader = RowsReader(database)
        applied, hlc_max = reader.applied()
        owner = database.first("SELECT v FROM meta WHERE k = 'replica_id'")
        said = {int(source): tuple(map(tuple, spans)) for source, spans in manifest.applied.items()}
        if owner != (manifest.replica,) or dict(applied.intervals()) != said or hlc_max != manifest.hlc_max:
            raise SnapshotDamagedError(f"{path.name} of replica {manifest.replica}: not the state in the manifest")
        database.begin()
        database.rows("UPDATE meta SET v = ? WHERE k = 'replica_id'", (replica_id,))
        # Another replica's fence says nothing of this one, which never voted.
        database.rows("DELETE FROM meta WHERE k = 'epoch'")
        database.commit()
    finally:
        database.close()  # the last connection moves the log into the file and removes it


def _offer_codecs(
    config: Config, collection: str, topology: CollectionTopology, shards: Iterable[Shard], staging: Path
) -> None:
    """Give the snapshot's codecs to the nodes; a greater codec that a node has already stays current."""
    settings = config.collections[collection]
    kind = Kind(settings.index)
    if kind is Kind.FLAT:
        return
    named = index_family(kind, settings.dim)
    nodes = {voter.node for members in topology.shards.values() for voter in members.voters}
    stores = [
        CodecStore(config.data_dir / "nodes" / node / CODECS_DIR / collection, collection, named, settings.dim)
        for node in sorted(nodes)
    ]
    for shard in shards:
        for entry in shard.manifest.codecs:
            path = staging / collection / str(shard.manifest.shard) / CODECS_DIR / f"{entry.sha256}.faiss"
            for codecs in stores:
                with contextlib.suppress(CodecRefusedError):  # another index kind is configured by now
                    codecs.offer(CodecRecord(**asdict(entry)), path.read_bytes())


def _set_aside(config: Config, voter: Voter) -> Path | None:
    """Rename a replaced replica's directory; None when it is not there. It keeps its data and its marker."""
    directory = config.replica_dir(voter.node, voter.replica_id)
    aside = directory.with_name(directory.name + ASIDE_SUFFIX)
    if not directory.is_dir():
        return None
    directory.rename(aside)
    files.sync_directory(aside.parent)
    return aside


class _Made:
    """Directories to be removed when the restore fails; listed in a file, in case it cannot do so itself."""

    def __init__(self, listing: Path) -> None:
        self._listing = listing
        self.paths: list[Path] = []

    def add(self, path: Path) -> None:
        self.paths.append(path)
        files.replace_file(self._listing, json.dumps([str(each) for each in self.paths]).encode())

    def clear(self) -> None:
        self.paths.clear()


@contextmanager
def _staging(config: Config) -> Iterator[Path]:
    """An empty directory, removed at the end; first what a restore that was killed left behind."""
    path = config.data_dir / STAGING_DIR
    if (path / LISTING_FILE).is_file():
        named = {config.replica_dir(voter.node, voter.replica_id) for voter in topology_file.named(config)}
        for left in json.loads((path / LISTING_FILE).read_bytes()):
            if Path(left) not in named:  # it was killed before the switch
                shutil.rmtree(left, ignore_errors=True)
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@contextmanager
def _new_replicas(staging: Path) -> Iterator[_Made]:
    """Directories added to it are removed when the block fails."""
    made = _Made(staging / LISTING_FILE)
    try:
        yield made
    finally:
        for path in made.paths:
            shutil.rmtree(path, ignore_errors=True)
