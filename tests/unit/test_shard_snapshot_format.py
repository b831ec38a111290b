"""Manifests of snapshots: what is written is read again, and nothing else is."""

from __future__ import annotations

import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.shard.snapshot_format import (
    FORMAT,
    CodecEntry,
    CollectionEntry,
    MeshManifest,
    ShardEntry,
    ShardManifest,
    SnapshotDamagedError,
    SnapshotFile,
    is_name,
    mesh_manifest,
    prefix_of,
    shard_manifest,
)

SHA256 = hashlib.sha256(b"").hexdigest()
TEXTS = st.text(max_size=12)
COUNTS = st.integers(0, 2**63)


def shard(**changes: object) -> ShardManifest:
    values: dict[str, object] = {
        "format": FORMAT,
        "collection": "docs",
        "shard": 0,
        "replica": "00ff",
        "epoch": 3,
        "applied": {"18446744073709551615": [[1, 4], [6, 9]]},
        "hlc_max": 2**63 + 1,
        "rows_live": 10,
        "digest": "0" * 32,
        "dim": 16,
        "embedding_model": "m",
        "embedding_revision": "",
        "codecs": [CodecEntry(1, SHA256, "IVF4,PQ4x4fs", 400, 500, 0.25, 1.5)],
        "created_ms": 1_800_000_000_000,
        "files": [SnapshotFile("replica.db", SHA256, 0), SnapshotFile("segments/s/ö", SHA256, 12)],
    }
    return ShardManifest(**{**values, **changes})  # type: ignore[arg-type]


def mesh() -> MeshManifest:
    shards = {"0": ShardEntry("monday/docs/0/00ff/manifest.json", SHA256, "00ff", 10, 12)}
    return MeshManifest(FORMAT, "monday", 1, {"docs": CollectionEntry(16, "m", "r", [0] * 256, shards)})


@given(
    model=TEXTS,
    rows=COUNTS,
    error=st.floats(0, 1e9, allow_nan=False),
    applied=st.dictionaries(COUNTS.map(str), st.lists(st.tuples(COUNTS, COUNTS).map(list), max_size=3), max_size=3),
    paths=st.lists(TEXTS, max_size=3),
)
def test_what_is_written_is_read_again(
    model: str, rows: int, error: float, applied: dict[str, list[list[int]]], paths: list[str]
) -> None:
    made = shard(
        embedding_model=model,
        rows_live=rows,
        applied=applied,
        codecs=[CodecEntry(1, SHA256, "f", rows, rows, error, 1.0)],
        files=[SnapshotFile(path, SHA256, rows) for path in paths],
    )
    assert shard_manifest(made.to_bytes(), "here") == made
    assert made.size == rows * len(paths)


def test_a_mesh_manifest_is_read_again() -> None:
    assert mesh_manifest(mesh().to_bytes(), "here") == mesh()
    assert (mesh().rows_live, mesh().size) == (10, 12)


@given(st.data())
def test_no_flipped_bit_passes(data: st.DataObject) -> None:
    sound = mesh().to_bytes()
    offset, bit = data.draw(st.integers(0, len(sound) - 1)), data.draw(st.integers(0, 7))
    spoiled = bytearray(sound)
    spoiled[offset] ^= 1 << bit
    with pytest.raises(SnapshotDamagedError, match="here"):
        mesh_manifest(bytes(spoiled), "here")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "Expecting value"),
        (b"\xff", "codec can't decode"),
        (b"[]", "not an object"),
        (b"{}", "KeyError"),
        (json.dumps(json.loads(mesh().to_bytes())).encode(), "not what was written"),
    ],
)
def test_anything_else_is_refused(content: bytes, reason: str) -> None:
    with pytest.raises(SnapshotDamagedError, match=reason):
        mesh_manifest(content, "here")
    with pytest.raises(SnapshotDamagedError):
        shard_manifest(content, "here")


def test_another_format_says_so() -> None:
    with pytest.raises(SnapshotDamagedError, match="format 2, this version reads 1"):
        shard_manifest(shard(format=2).to_bytes(), "here")


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "-x", "a" * 65, "a b", "ä"])
def test_names_that_could_lead_elsewhere_are_none(name: str) -> None:
    assert not is_name(name)


def test_keys_say_what_they_hold() -> None:
    assert is_name("20261123T060000Z")
    assert prefix_of("monday", "docs", 3, "00ff") == "monday/docs/3/00ff"
