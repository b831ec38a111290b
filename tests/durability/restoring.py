"""Stories of snapshots: what was taken is whole, and what was restored is a replica like any other."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from services.runtime import topology_file
from services.runtime.config import Config
from services.runtime.topology import BUCKETS
from services.shard import snapshot, snapshot_restore
from services.shard.engine import Engine
from services.shard.node_codecs import CODECS_DIR
from services.shard.object_store import ObjectStore, ObjectStoreError, open_store
from services.shard.snapshot import Subject
from services.shard.snapshot_format import (
    FORMAT,
    MESH_FILE,
    CollectionEntry,
    MeshManifest,
    ShardEntry,
    SnapshotError,
)
from services.shard.snapshot_restore import LISTING_FILE, STAGING_DIR
from services.shard.store import StoreError
from tests.durability.mesh_records import mesh_config, mesh_problems, missing_ids
from tests.durability.workload import EPOCH, REPLICA, WAIT_S, Workload, small
from tests.unit.shard_rows import DIM, NOW_MS, FixedClock

MODEL = "all-MiniLM-L6-v2"
NAME = "monday"


class SnapshotStory:
    """A snapshot is taken, and restored into a mesh that has a replica already."""

    def __init__(self) -> None:
        self._restored: snapshot_restore.Restored | None = None
        self._ids: set[str] = set()
        self._rows = 0

    def run(self, root: Path) -> Iterator[None]:
        (root / "source").mkdir()
        store = self._store(root)
        self._take(root / "source", store)
        yield
        config = self._config(root)
        topology_file.bootstrap(config)
        yield from self._restore(config, store)

    def _restore(self, config: Config, store: ObjectStore) -> Iterator[None]:
        self._restored = snapshot_restore.restore(config, store, NAME)
        self._ids = {voter.replica_id for _, _, voter in topology_file.load(config).replicas_of("n1")}
        yield

    def _take(self, source: Path, store: ObjectStore) -> None:
        load = Workload(source, seed=1)
        load.open()
        load.write(12)
        load.seal()
        taken = snapshot.take(Subject(load.engine, None, "docs", 0, EPOCH, MODEL, ""), NAME, store, NOW_MS)
        self._rows = taken.manifest.rows_live
        entry = ShardEntry(taken.key, taken.sha256, REPLICA, self._rows, taken.manifest.size)
        collection = CollectionEntry(DIM, MODEL, "", [0] * BUCKETS, {"0": entry})
        store.put(f"{NAME}/{MESH_FILE}", MeshManifest(FORMAT, NAME, NOW_MS, {"docs": collection}).to_bytes())
        load.close()

    def judge(self, root: Path) -> list[str]:
        try:
            snapshot_restore.verify_snapshot(self._store(root), NAME)
        except (ObjectStoreError, SnapshotError) as error:
            return [f"the snapshot is not whole: {error}"]
        if self._restored is None:
            return []
        config = self._config(root)
        if found := [*mesh_problems(config), *missing_ids(config, self._ids)]:
            return found
        for replica_id in self._ids:
            found += self._replica(config.replica_dir("n1", replica_id), replica_id)
        here = {path.name for path in config.replica_dir("n1", "any").parent.iterdir()}
        aside = {path.name for path in self._restored.set_aside}
        return found + [f"{name} is not where it was set aside" for name in sorted(aside - here)]

    def _replica(self, directory: Path, replica_id: str) -> list[str]:
        try:
            engine = Engine(directory, replica_id, EPOCH, DIM, small(), FixedClock())
        except (StoreError, OSError) as error:
            return [f"the restored replica does not open: {error}"]
        try:
            found = [] if engine.view.rows_live == self._rows else [f"{engine.view.rows_live} rows are restored"]
            if not engine.view.parts or engine.ledger.found:
                found.append("segments of the restored replica are damaged")
            return found
        finally:
            engine.close()

    def _store(self, root: Path) -> ObjectStore:
        return open_store(str(root / "backups" / "deep"))

    def _config(self, root: Path) -> Config:
        settings = {"shards": 1, "replicas": 1, "read_quorum": 1, "write_quorum": 1, "dim": DIM}
        return mesh_config(root, {"docs": settings}, nodes=1)


class RestoreStory(SnapshotStory):
    """A snapshot is restored where there is no mesh yet; the power fails in the middle of it, too."""

    def __init__(self) -> None:
        super().__init__()
        self._root = Path()

    def run(self, root: Path) -> Iterator[None]:
        self._root = root
        (root / "source").mkdir()
        store = self._store(root)
        self._take(root / "source", store)
        yield from self._restore(self._config(root), store)

    def _restore(self, config: Config, store: ObjectStore) -> Iterator[None]:
        reached, go_on = threading.Event(), threading.Event()

        def pause(_: str) -> None:
            reached.set()
            assert go_on.wait(WAIT_S), "the story goes on"

        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(snapshot_restore.restore, config, store, NAME, (), pause)
            assert reached.wait(WAIT_S), "the first replica is made"
            try:
                yield
            finally:
                go_on.set()
            self._restored = future.result()
        self._ids = {voter.replica_id for _, _, voter in topology_file.load(config).replicas_of("n1")}
        yield

    def judge(self, root: Path) -> list[str]:
        if self._restored is not None:
            return super().judge(root)
        config = self._config(root)
        listing = config.data_dir / STAGING_DIR / LISTING_FILE
        if listing.is_file():  # it has absolute paths, and the disk's image is elsewhere
            listing.write_text(listing.read_text().replace(str(self._root), str(root)))
        snapshot_restore.restore(config, self._store(root), NAME)
        known = {voter.replica_id for _, _, voter in topology_file.load(config).replicas_of("n1")}
        here = {path.name for path in config.replica_dir("n1", "any").parent.iterdir()} - {CODECS_DIR}
        return [f"a restore that was interrupted leaves {sorted(here - known)}"] if here - known else []
