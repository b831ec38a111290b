"""Snapshots of serving replicas over real TLS, and restoring them: round trips, refusals, and what changes when."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest

from ostraka.cli.snapshot_create import create
from ostraka.v1 import shard_pb2, shard_pb2_grpc
from services.quorum.rows import WriteBatch
from services.runtime import atomic_file, topology_file
from services.runtime.channel import open_channel
from services.runtime.config import Config, NodeConfig, SnapshotsConfig, parse
from services.runtime.tls import Role, dev_certificates
from services.shard import snapshot_restore
from services.shard.object_store import ObjectDamagedError, ObjectStore, ObjectStoreError, open_store
from services.shard.snapshot_format import (
    MESH_FILE,
    MeshManifest,
    RestoreRefusedError,
    SnapshotDamagedError,
    SnapshotError,
)
from tests.integration.shard_nodes import (
    COLLECTION,
    ShardNode,
    eventually,
    gossip,
    nodes_config,
    now,
    search_request,
    write_request,
)
from tests.s3_server import S3Server, s3_server  # noqa: F401  # a fixture
from tests.unit.shard_rows import DIM, batch

NODES = 2
DOCUMENTS = 8
PASSAGES = 100
NAME = "monday"
SETTINGS = {"train_rows_min": 600, "delta_rows_flush": 300, "codec_exchange_ms": 60}


@pytest.fixture(params=["directory", "s3"])
def destination(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, str]]:
    """(destination, endpoint)"""
    if request.param == "directory":
        yield str(tmp_path / "snapshots"), ""
        return
    server: S3Server = request.getfixturevalue("s3_server")
    yield f"s3://{server.bucket}/mesh", server.endpoint_url


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return nodes_config(tmp_path / "old", NODES, batch_rows_max=1_024, batch_bytes_max=1 << 20, **SETTINGS)


async def started(config: Config) -> list[ShardNode]:
    nodes = [await ShardNode(config, f"n{number}").start() for number in range(1, NODES + 1)]
    gossip(*nodes)
    await eventually(lambda: all(node.replica.caught_up for node in nodes))
    return nodes


async def stopped(nodes: list[ShardNode]) -> None:
    for node in nodes:
        await node.stop()


@pytest.fixture
async def pair(config: Config) -> AsyncIterator[list[ShardNode]]:
    nodes = await started(config)
    yield nodes
    await stopped(nodes)


async def ingest(node: ShardNode, first: int = 1, count: int = DOCUMENTS) -> list[WriteBatch]:
    made = [batch(number, [(f"d{number}", PASSAGES)]) for number in range(first, first + count)]
    for entry in made:
        reply = await node.stub.Write(write_request(entry, now(entry)), timeout=10)
        assert reply.status == shard_pb2.REPLICA_STATUS_OK, reply
    return made


def sealed(nodes: list[ShardNode]) -> bool:
    return all(node.replica.engine is not None and bool(node.replica.engine.view.parts) for node in nodes)


async def filled(nodes: list[ShardNode]) -> list[WriteBatch]:
    """Rows on all nodes, a codec, and at least one segment everywhere, encoded with it."""
    written = await ingest(nodes[0])
    await eventually(lambda: all(node.applied == nodes[0].applied for node in nodes) and sealed(nodes))
    await eventually(lambda: all(encoded(node) for node in nodes))
    return written


def encoded(node: ShardNode) -> bool:
    """Whether the node has a codec and all its segments are encoded with it."""
    record = node.node.codecs.stores[COLLECTION].record()
    engine = node.replica.engine
    if record is None or engine is None:
        return False
    return all(part.segment.manifest.codec == record.short for part in engine.view.parts)


def reachable(config: Config, nodes: list[ShardNode], endpoint_url: str = "") -> Config:
    """The mesh file with the addresses that the nodes really have."""
    addresses = {node.name: NodeConfig(address=node.address) for node in nodes}
    return replace(config, nodes=addresses, snapshots=SnapshotsConfig(endpoint_url=endpoint_url))


async def snapshot(config: Config, nodes: list[ShardNode], place: tuple[str, str], name: str = NAME) -> MeshManifest:
    for node in nodes:  # as if the mesh file that they read had it
        object.__setattr__(node.config.snapshots, "endpoint_url", place[1])
    return await create(reachable(config, nodes, place[1]), place[0], name, (), 60.0, lambda _: None)


async def answers(node: ShardNode, written: list[WriteBatch], epoch: int) -> list[list[tuple[str, int, float, bytes]]]:
    """What the node answers to a search for each document's first passage, scores and payloads included."""
    found = []
    for entry in written:
        request = search_request(entry, k=10)
        request.epoch = epoch
        (leg,) = (await node.stub.Search(request, timeout=10)).shards
        assert leg.status == shard_pb2.REPLICA_STATUS_OK, leg.message
        found.append([(hit.document_id, hit.ordinal, hit.score, hit.payload) for hit in leg.results[0].hits])
    return found


def another_mesh(directory: Path, **collection: Any) -> Config:
    """A mesh file that fits the snapshot, for a data directory that does not exist yet."""
    settings = {"shards": 1, "replicas": NODES, "read_quorum": NODES, "write_quorum": 1, "dim": DIM, **collection}
    raw = {
        "mesh": {"drain_s": 1.0},
        "shard": {"disk_reserve_bytes": 0, "gossip_ms": 30, **SETTINGS},
        "nodes": {f"n{number}": {"address": f"127.0.0.1:{number}"} for number in range(1, NODES + 1)},
        "collections": {COLLECTION: settings},
    }
    return parse(raw, directory / "mesh.toml", {})


def ids(config: Config) -> set[str]:
    members = topology_file.load(config).collections[COLLECTION].shards[0]
    return {voter.replica_id for voter in members.voters}


def tree(directory: Path) -> dict[str, bytes]:
    """Every file below a directory, except the lock."""
    files = [path for path in directory.rglob("*") if path.is_file() and path.name != "topology.lock"]
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in files}


async def test_a_restored_mesh_gives_the_same_answers(
    config: Config, tmp_path: Path, destination: tuple[str, str]
) -> None:
    nodes = await started(config)
    written = await filled(nodes)
    expected = await answers(nodes[0], written, epoch=1)
    made = await snapshot(config, nodes, destination)
    codec = nodes[0].node.codecs.stores[COLLECTION].record()
    applied, digest = nodes[0].applied, nodes[0].replica.engine.view.digest_bytes  # type: ignore[union-attr]
    await stopped(nodes)
    assert made.rows_live == DOCUMENTS * PASSAGES
    store = open_store(*destination)
    assert snapshot_restore.verify_snapshot(store, NAME) == made
    fresh = another_mesh(tmp_path / "new")
    done = snapshot_restore.restore(fresh, store, NAME)
    assert (done.replicas, done.rows_live, done.set_aside) == (NODES, DOCUMENTS * PASSAGES, ())
    assert not ids(fresh) & ids(config)
    dev_certificates(fresh)
    again = await started(fresh)
    try:
        for node in again:
            engine = node.replica.engine
            assert engine is not None
            assert (engine.view.applied, engine.view.digest_bytes) == (applied, digest)
            assert engine.view.parts, "segments came with the snapshot"
            record = node.node.codecs.stores[COLLECTION].record()
            assert record is not None
            assert codec is not None
            assert record.rank >= codec.rank
            assert await answers(node, written, epoch=2) == expected
        later = batch(99, [("later", 1)])
        reply = await again[0].stub.Write(write_request(later, now(later), epoch=2), timeout=10)
        assert reply.status == shard_pb2.REPLICA_STATUS_OK
        await eventually(lambda: later.gtid in again[1].applied)
        assert again[1].replica.divergences == 0
    finally:
        await stopped(again)


async def test_restoring_in_place_takes_writes_back_and_sets_the_old_replicas_aside(
    config: Config, tmp_path: Path
) -> None:
    place = (str(tmp_path / "snapshots"), "")
    nodes = await started(config)
    written = await filled(nodes)
    await snapshot(config, nodes, place)
    lost = (await ingest(nodes[0], first=50, count=1))[0]
    await stopped(nodes)
    before = ids(config)
    done = snapshot_restore.restore(config, open_store(*place), NAME)
    assert not ids(config) & before
    assert topology_file.load(config).collections[COLLECTION].shards[0].epoch == 2
    assert {path.name.removesuffix(".replaced") for path in done.set_aside} == before
    assert all((path / "replica.db").is_file() for path in done.set_aside), "renamed, never deleted"
    assert not (config.data_dir / snapshot_restore.STAGING_DIR).exists()
    again = await started(config)
    try:
        for node in again:
            assert lost.gtid not in node.applied
            assert written[-1].gtid in node.applied
    finally:
        await stopped(again)


async def test_writes_go_on_while_a_snapshot_is_taken(pair: list[ShardNode], config: Config, tmp_path: Path) -> None:
    place = (str(tmp_path / "snapshots"), "")
    await filled(pair)
    before = pair[0].applied
    taking = asyncio.create_task(snapshot(config, pair, place))
    written = []
    number = 100
    while not taking.done():
        written += await ingest(pair[number % NODES], first=number, count=1)
        number += 1
    made = await taking
    assert written, "the snapshot took no time at all"
    await eventually(lambda: pair[0].applied == pair[1].applied)
    shards = snapshot_restore.read_shards(open_store(*place), COLLECTION, made.collections[COLLECTION])
    taken = shards[0].manifest
    covered = {int(source): spans for source, spans in taken.applied.items()}
    for source, spans in before.intervals().items():
        assert covered[source][0][1] >= spans[0][1], "at least what was there when it was asked for"
    whole = {entry.passages[0].document_id for entry in written}
    assert whole
    assert taken.rows_live % PASSAGES == 0, "one committed state: documents are there whole or not at all"
    snapshot_restore.verify_snapshot(open_store(*place), NAME)


async def test_merges_meanwhile_never_leave_a_hole(
    pair: list[ShardNode], config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every segment vanishes between the two times that links are made: rows are restored from the database."""
    from services.shard import snapshot as taking

    place = (str(tmp_path / "snapshots"), "")
    written = await filled(pair)
    expected = await answers(pair[0], written, epoch=1)
    monkeypatch.setattr(taking, "_link", lambda segments_dir, links: None)
    made = await snapshot(config, pair, place)
    shards = snapshot_restore.read_shards(open_store(*place), COLLECTION, made.collections[COLLECTION])
    assert not [file.path for file in shards[0].manifest.files if file.path.startswith("segments/")]
    fresh = another_mesh(tmp_path / "new")
    snapshot_restore.restore(fresh, open_store(*place), NAME)
    dev_certificates(fresh)
    again = await started(fresh)
    try:
        assert await answers(again[0], written, epoch=2) == expected
    finally:
        await stopped(again)


@pytest.fixture
async def taken(pair: list[ShardNode], config: Config, tmp_path: Path) -> tuple[Path, Config]:
    """(a snapshot in a directory, a mesh that it fits and that holds something else)"""
    place = tmp_path / "snapshots"
    await filled(pair)
    await snapshot(config, pair, (str(place), ""))
    other = another_mesh(tmp_path / "other")
    topology_file.bootstrap(other)
    return place, other


async def test_a_flipped_bit_in_any_object_is_refused_and_changes_nothing(taken: tuple[Path, Config]) -> None:
    place, other = taken
    store = open_store(str(place))
    before = tree(other.data_dir)
    keys = list(store.keys(f"{NAME}/"))
    assert {key.rsplit("/", 1)[1] for key in keys} >= {"mesh.json", "manifest.json", "replica.db", "index.faiss"}
    assert any("/codecs/" in key for key in keys)
    for number, key in enumerate(keys):
        path = place / key
        sound = path.read_bytes()
        spoiled = bytearray(sound)
        spoiled[(number * 7_919) % len(spoiled)] ^= 1 << number % 8
        path.write_bytes(spoiled)
        with pytest.raises((ObjectDamagedError, SnapshotDamagedError)):
            snapshot_restore.verify_snapshot(store, NAME)
        with pytest.raises((ObjectDamagedError, SnapshotDamagedError)):
            snapshot_restore.restore(other, store, NAME)
        assert tree(other.data_dir) == before, key
        path.write_bytes(sound)
    snapshot_restore.verify_snapshot(store, NAME)


async def test_every_bit_of_a_manifest_counts(taken: tuple[Path, Config]) -> None:
    place, _ = taken
    path = place / NAME / MESH_FILE
    sound = path.read_bytes()
    store = open_store(str(place))
    for offset in range(0, len(sound)):
        spoiled = bytearray(sound)
        spoiled[offset] ^= 1 << offset % 8
        path.write_bytes(spoiled)
        with pytest.raises(SnapshotDamagedError):
            snapshot_restore.read_mesh(store, NAME)


async def test_cut_and_missing_objects_are_refused(taken: tuple[Path, Config]) -> None:
    place, other = taken
    store = open_store(str(place))
    before = tree(other.data_dir)
    for key in store.keys(f"{NAME}/"):
        sound = (place / key).read_bytes()
        for content in (sound[: len(sound) // 2], sound + b"\0", None):
            (place / key).unlink()
            if content is not None:
                (place / key).write_bytes(content)
            with pytest.raises((ObjectStoreError, SnapshotDamagedError)):
                snapshot_restore.restore(other, store, NAME)
            assert tree(other.data_dir) == before, key
            (place / key).write_bytes(sound)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"dim": 32}, r"collections.docs.dim is 32 in .* but 16 in snapshot 'monday'"),
        ({"embedding_model": "other"}, r"collections.docs.embedding_model is 'other'"),
        ({"shards": 3}, r"collections.docs.shards is 3 in .* but 1 in"),
    ],
)
async def test_a_mesh_that_the_snapshot_does_not_fit_is_left_alone(
    taken: tuple[Path, Config], tmp_path: Path, settings: dict[str, Any], reason: str
) -> None:
    store = open_store(str(taken[0]))
    unfit = another_mesh(tmp_path / "unfit", **settings)
    topology_file.bootstrap(unfit)
    before = tree(unfit.data_dir)
    with pytest.raises(RestoreRefusedError, match=reason):
        snapshot_restore.restore(unfit, store, NAME)
    assert tree(unfit.data_dir) == before


async def test_a_full_disk_at_the_last_moment_changes_nothing(
    taken: tuple[Path, Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    place, other = taken
    before = tree(other.data_dir)
    real = atomic_file.write_atomically

    def full(path: Path, content: bytes, mode: int = 0o644) -> None:
        if path == other.topology_path:
            raise OSError("the disk is full")
        real(path, content, mode)

    monkeypatch.setattr("services.runtime.topology_file.write_atomically", full)
    with pytest.raises(OSError, match="full"):
        snapshot_restore.restore(other, open_store(str(place)), NAME)
    left = {path: content for path, content in tree(other.data_dir).items() if "/codecs/" not in path}
    assert left == before, "codecs are derived and may stay; everything else is as it was"


async def test_what_a_killed_restore_left_is_removed_by_the_next(
    taken: tuple[Path, Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    place, other = taken
    store = open_store(str(place))
    before = tree(other.data_dir)

    class KilledError(BaseException):
        pass

    def killed(*_: object) -> None:
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(snapshot_restore, "_offer_codecs", killed)
        patch.setattr("shutil.rmtree", lambda *_, **__: None)  # a killed process cleans nothing up
        with pytest.raises(KilledError):
            snapshot_restore.restore(other, store, NAME)
    assert len(tree(other.data_dir)) > len(before)
    monkeypatch.setattr(snapshot_restore, "_download", killed)
    with pytest.raises(KilledError):
        snapshot_restore.restore(other, store, NAME)
    assert tree(other.data_dir) == before


async def test_names_collections_and_destinations_are_checked(
    taken: tuple[Path, Config], pair: list[ShardNode], config: Config
) -> None:
    place, other = taken
    with pytest.raises(SnapshotError, match="has a snapshot 'monday' already"):
        await snapshot(config, pair, (str(place), ""))
    with pytest.raises(SnapshotError, match="is not 1 to 64 letters"):
        await snapshot(config, pair, (str(place), ""), name="../up")
    with pytest.raises(RestoreRefusedError, match="has no collection 'none'; it has docs"):
        snapshot_restore.restore(other, open_store(str(place)), NAME, ["none"])
    with pytest.raises(ObjectStoreError, match=r"tuesday/mesh\.json does not exist"):
        snapshot_restore.restore(other, open_store(str(place)), "tuesday")
    channel = open_channel(config, pair[0].address, server_role=Role.SHARD, identity="admin")
    try:
        stub = shard_pb2_grpc.ShardServiceStub(channel)
        request = shard_pb2.SnapshotShardRequest(collection=COLLECTION, destination="relative", name="x")
        with pytest.raises(grpc.aio.AioRpcError, match="must be absolute") as refused:
            await stub.SnapshotShard(request, timeout=10)
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        with pytest.raises(grpc.aio.AioRpcError) as forbidden:
            await pair[0].stub.SnapshotShard(request, timeout=10)
        assert forbidden.value.code() is grpc.StatusCode.PERMISSION_DENIED
    finally:
        await channel.close()


async def test_another_replica_is_copied_when_one_cannot_be(
    pair: list[ShardNode], config: Config, tmp_path: Path
) -> None:
    await filled(pair)
    pair[0].replica.failure = "its disk is gone"
    made = await snapshot(config, pair, (str(tmp_path / "snapshots"), ""))
    assert made.collections[COLLECTION].shards["0"].replica == pair[1].replica.replica_id
    pair[1].replica.failure = "so is this one's"
    with pytest.raises(SnapshotError, match=r"no replica of 'docs' shard 0 could be copied: .*its disk is gone"):
        await snapshot(config, pair, (str(tmp_path / "snapshots"), ""), name="second")
    assert not (tmp_path / "snapshots" / "second" / MESH_FILE).exists()
    assert json.loads((tmp_path / "snapshots" / NAME / MESH_FILE).read_bytes())["manifest"]["name"] == NAME


def test_the_store_protocol_is_met() -> None:
    """Both kinds of store are used through the same protocol."""
    made: ObjectStore = open_store("/somewhere")
    assert made.names() == []
