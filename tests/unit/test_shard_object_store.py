"""Object stores: a directory and a bucket (moto) behave alike."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.shard import s3_store
from services.shard.object_store import (
    BadDestinationError,
    ObjectDamagedError,
    ObjectMissingError,
    ObjectStore,
    ObjectStoreError,
    fetch,
    open_store,
    read_small,
    verify,
)
from tests.s3_server import S3Server, s3_server  # noqa: F401  # a fixture

PART = 5 * 1024 * 1024


@pytest.fixture(params=["directory", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ObjectStore]:
    if request.param == "directory":
        yield open_store(str(tmp_path / "deep" / "store"))
        return
    server: S3Server = request.getfixturevalue("s3_server")
    yield open_store(f"s3://{server.bucket}/deep/prefix", server.endpoint_url)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_what_was_put_is_there(store: ObjectStore, tmp_path: Path) -> None:
    assert store.names() == []
    assert not store.exists("a/b")
    store.put("a/b", b"small")
    store.put("a/c/d", b"")
    store.put("z", b"top")
    assert list(store.keys("")) == ["a/b", "a/c/d", "z"]
    assert list(store.keys("a/c/")) == ["a/c/d"]
    assert store.names() == ["a", "z"]
    assert store.exists("a/b")
    assert read_small(store, "a/b", sha256(b"small")) == b"small"
    assert read_small(store, "a/c/d") == b""
    store.put("a/b", b"again")
    assert read_small(store, "a/b") == b"again"


def test_large_files_travel_in_parts(store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_store, "PART_BYTES", PART)
    data = bytes(range(256)) * (PART // 256 * 2) + b"tail"
    source = tmp_path / "source"
    source.write_bytes(data)
    store.put_file("big", source)
    verify(store, "big", sha256(data), len(data))
    fetch(store, "big", tmp_path / "fetched", sha256(data), len(data))
    assert (tmp_path / "fetched").read_bytes() == data


@pytest.mark.parametrize(
    ("content", "size", "reason"),
    [(b"12345", 6, "5 bytes, expected 6"), (b"12345", 4, "more bytes, expected 4"), (b"12354", 5, "sha256 is")],
)
def test_other_bytes_are_refused_and_leave_no_file(
    store: ObjectStore, tmp_path: Path, content: bytes, size: int, reason: str
) -> None:
    store.put("key", content)
    path = tmp_path / "fetched"
    with pytest.raises(ObjectDamagedError, match=reason):
        fetch(store, "key", path, sha256(b"12345"), size)
    assert not path.exists()
    with pytest.raises(ObjectDamagedError, match=reason):
        verify(store, "key", sha256(b"12345"), size)


def test_missing_objects_say_so(store: ObjectStore, tmp_path: Path) -> None:
    with pytest.raises(ObjectMissingError, match="none does not exist"):
        read_small(store, "none")
    with pytest.raises(ObjectMissingError):
        fetch(store, "none", tmp_path / "fetched", "", 0)


@pytest.mark.parametrize(
    ("destination", "reason"),
    [
        ("relative/path", "must be absolute"),
        ("ftp://host/path", "neither a directory nor s3://bucket/prefix"),
        ("s3://", "names no bucket"),
    ],
)
def test_impossible_destinations_are_refused(destination: str, reason: str) -> None:
    with pytest.raises(BadDestinationError, match=reason):
        open_store(destination)


def test_a_bucket_that_does_not_exist_is_named(s3_server: S3Server) -> None:  # noqa: F811
    with pytest.raises(ObjectStoreError, match="s3://no-such-bucket/x/"):
        open_store("s3://no-such-bucket/x", s3_server.endpoint_url).put("key", b"")


def test_without_boto3_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "boto3", None)
    with pytest.raises(BadDestinationError, match=r"pip install 'ostraka\[s3\]'"):
        open_store("s3://bucket/prefix")


def test_a_key_cannot_leave_the_directory(tmp_path: Path) -> None:
    with pytest.raises(BadDestinationError, match="is not a key"):
        open_store(str(tmp_path)).put("../outside", b"")


def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ObjectStoreError, match="file"):
        open_store(str(tmp_path / "file")).put("key", b"")
