"""Taking a snapshot of one replica while it serves.

The database is copied by `VACUUM INTO`: one read transaction of write-ahead logging, so writers never wait. Segments
are immutable, so hard links hold them against the merges that go on; links are made before the copy and once more
after it, because a segment may be published in between. A segment that the copy names but that a merge removed in
that moment is struck from the copy: segments are derived data, and a restored replica builds them anew from its rows.
Every row is read and checked before anything is uploaded, since all replicas of a restored shard begin from these
bytes and none could mend another.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from services.quorum.gtid import GtidSet
from services.shard import live_bits, opening
from services.shard.codecs import CodecStore
from services.shard.damage import DamagedRowError, RowName
from services.shard.engine import DATABASE_FILE, SEGMENTS_DIR, Engine
from services.shard.object_store import ObjectStore
from services.shard.replica_state import read_state
from services.shard.rows_reader import RowsReader
from services.shard.segment import SegmentDamagedError, open_segment
from services.shard.snapshot_format import (
    FORMAT,
    MANIFEST_FILE,
    CodecEntry,
    ShardManifest,
    SnapshotFile,
    prefix_of,
)
from services.shard.store import Database, StoreFullError

WORK_DIR = "snapshot.tmp"
CODECS_DIR = "codecs"
ROWS_PER_READ = 2_048


@dataclass(frozen=True, slots=True)
class Subject:
    """The replica and what its manifest says of it."""

    engine: Engine
    codecs: CodecStore | None
    collection: str
    shard: int
    epoch: int
    embedding_model: str
    embedding_revision: str


@dataclass(frozen=True, slots=True)
class Taken:
    """A finished snapshot of one replica."""

    manifest: ShardManifest
    applied: GtidSet
    key: str
    """Of the manifest, relative to the destination."""
    sha256: str


@dataclass(frozen=True, slots=True)
class _Copied:
    applied: GtidSet
    hlc_max: int
    rows_live: int
    digest: str
    codecs: frozenset[str]


def remove_leftovers(replica_dir: Path) -> None:
    """Remove what a crash during a snapshot left in a replica's directory."""
    shutil.rmtree(replica_dir / WORK_DIR, ignore_errors=True)


def take(subject: Subject, name: str, store: ObjectStore, now_ms: int) -> Taken:
    """Copy, check and upload, in the calling thread; the manifest goes last.

    Raises StoreError, DamagedRowError, ObjectStoreError, OSError; then the snapshot has no manifest.
    """
    engine = subject.engine
    with _work_dir(engine) as work:
        copied = _copy(engine, work)
        codecs = _put_codecs(subject.codecs, copied.codecs, work / CODECS_DIR)
        prefix = prefix_of(name, subject.collection, subject.shard, engine.replica_id)
        files = []
        for path in _files(work):
            relative = path.relative_to(work).as_posix()
            files.append(SnapshotFile(relative, _sha256(path), path.stat().st_size))
            store.put_file(f"{prefix}/{relative}", path)
    manifest = ShardManifest(
        format=FORMAT,
        collection=subject.collection,
        shard=subject.shard,
        replica=engine.replica_id,
        epoch=subject.epoch,
        applied=_intervals(copied.applied),
        hlc_max=copied.hlc_max,
        rows_live=copied.rows_live,
        digest=copied.digest,
        dim=engine.dim,
        embedding_model=subject.embedding_model,
        embedding_revision=subject.embedding_revision,
        codecs=codecs,
        created_ms=now_ms,
        files=files,
    )
    data = manifest.to_bytes()
    store.put(f"{prefix}/{MANIFEST_FILE}", data)
    return Taken(manifest, copied.applied, f"{prefix}/{MANIFEST_FILE}", hashlib.sha256(data).hexdigest())


@contextmanager
def _work_dir(engine: Engine) -> Iterator[Path]:
    """A directory on the replica's own file system, so that segments can be linked; removed at the end."""
    needed = engine.database_path.stat().st_size + engine.log_bytes()
    free = shutil.disk_usage(engine.directory).free
    if free < needed + engine.config.disk_reserve_bytes:
        reserve = engine.config.disk_reserve_bytes
        raise StoreFullError(f"{free} bytes free; a copy takes {needed} beside shard.disk_reserve_bytes {reserve}")
    remove_leftovers(engine.directory)
    work = engine.directory / WORK_DIR
    work.mkdir()
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _copy(engine: Engine, work: Path) -> _Copied:
    """The database and the segments it names, below `work`. Raises StoreError, DamagedRowError, OSError."""
    links = work / SEGMENTS_DIR
    links.mkdir()
    _link(engine.segments_dir, links)
    source = Database(engine.database_path, writable=True)
    try:
        source.rows("VACUUM INTO ?", (str(work / DATABASE_FILE),))
    finally:
        source.close()
    _link(engine.segments_dir, links)
    database = Database(work / DATABASE_FILE, writable=True)
    try:
        opening.prepare(database, engine.replica_id)
        reader = RowsReader(database)
        rows_live = _check_rows(reader)
        applied, hlc_max = reader.applied()
        state = read_state(database)
        digest = format(state.digest if state else 0, "032x")
        named = reader.segments()
        codecs = {segment: _codec_of(links / segment, sha256) for segment, sha256 in named.items()}
        sound = {segment: codec for segment, codec in codecs.items() if codec is not None}
        database.begin()
        for segment in named.keys() - sound.keys():
            database.rows("DELETE FROM segments WHERE name = ?", (segment,))
        database.commit()
    finally:
        database.close()  # the last connection moves the log into the file and removes it
    for entry in links.iterdir():
        if entry.name not in sound:
            shutil.rmtree(entry)
    return _Copied(applied, hlc_max, rows_live, digest, frozenset(sound.values()))


def _link(segments_dir: Path, links: Path) -> None:
    """Hard links to the files of every published segment; of one that a merge removes meanwhile, to some."""
    for segment in segments_dir.iterdir() if segments_dir.is_dir() else ():
        if segment.name.endswith(".tmp"):
            continue  # being built
        target = links / segment.name
        target.mkdir(exist_ok=True)
        for file in segment.iterdir() if segment.is_dir() else ():
            try:
                os.link(file, target / file.name)
            except FileExistsError:
                continue
            except FileNotFoundError:
                break  # merged away; what is incomplete is struck from the copy


def _codec_of(directory: Path, sha256: str) -> str | None:
    """The codec of a segment that verifies; None when it does not, and the copy must not name it."""
    try:
        return open_segment(directory, sha256).manifest.codec
    except SegmentDamagedError:
        return None


def _check_rows(reader: RowsReader) -> int:
    """How many rows live; each one and each head has been compared with its checksum. Raises DamagedRowError."""
    bad = [head for head in reader.heads() if isinstance(head, RowName)]
    if bad:
        raise DamagedRowError(bad)
    bits, _ = live_bits.read(reader.database)
    live = bits.rids()
    for start in range(0, len(live), ROWS_PER_READ):
        _, bad_rows = reader.sound([int(rid) for rid in live[start : start + ROWS_PER_READ]])
        if bad_rows:
            raise DamagedRowError(bad_rows)
    return len(live)


def _put_codecs(codecs: CodecStore | None, named: frozenset[str], directory: Path) -> list[CodecEntry]:
    """Write the codecs that segments name and the current one; those not here any more are left out."""
    if codecs is None:
        return []
    current = codecs.record()
    wanted = sorted(named | ({current.short} if current else set()))
    found = [codec for short in wanted if (codec := codecs.by_id(short)) is not None]
    if found:
        directory.mkdir()
    for codec in found:
        (directory / f"{codec.record.sha256}.faiss").write_bytes(codec.data)
    return [CodecEntry(**asdict(codec.record)) for codec in found]


def _files(work: Path) -> Sequence[Path]:
    return sorted(path for path in work.rglob("*") if path.is_file())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _intervals(applied: GtidSet) -> dict[str, list[list[int]]]:
    return {str(source): [list(span) for span in spans] for source, spans in applied.intervals().items()}
