"""Where snapshots go: a directory, or a bucket behind the S3 API. Keys are relative paths with `/`.

    ObjectStoreError
    |- ObjectMissingError     no object of that key
    |- ObjectDamagedError     the bytes are not those that were written: other sha256 or size
    `- BadDestinationError    the destination can never work as it is written

Everything streams in pieces of PIECE_BYTES; whoever reads says which sha256 and size must come out.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol

from services.runtime.atomic_file import sync_directory

PIECE_BYTES = 1024 * 1024
SMALL_BYTES_MAX = 16 * 1024 * 1024
"""Manifests are read whole; a larger one is not one of ours."""
S3_SCHEME = "s3://"


class ObjectStoreError(Exception):
    """The store cannot be used; the message names the destination or the key."""


class ObjectMissingError(ObjectStoreError):
    """No object of that key."""


class ObjectDamagedError(ObjectStoreError):
    """The bytes are not those that were written."""


class BadDestinationError(ObjectStoreError):
    """The destination can never work as it is written."""


class ObjectStore(Protocol):
    """Blocking; used from threads."""

    def put_file(self, key: str, path: Path) -> None:
        """Upload a file, in pieces; durable when this returns. Raises ObjectStoreError."""
        ...

    def put(self, key: str, data: bytes) -> None:
        """Upload a small object; durable when this returns. Raises ObjectStoreError."""
        ...

    def keys(self, prefix: str) -> Iterator[str]:
        """Every key below `prefix` ("" or ending in "/"), in order. Raises ObjectStoreError."""
        ...

    def names(self) -> list[str]:
        """First parts of all keys, in order. Raises ObjectStoreError."""
        ...

    def pieces(self, key: str) -> Iterator[bytes]:
        """The object's bytes. Raises ObjectMissingError, ObjectStoreError."""
        ...

    def exists(self, key: str) -> bool:
        """Raises ObjectStoreError."""
        ...


def open_store(destination: str, endpoint_url: str = "") -> ObjectStore:
    """The store at an absolute directory or `s3://bucket/prefix`. `endpoint_url`: of an S3 server other than AWS.

    Raises BadDestinationError.
    """
    if destination.startswith(S3_SCHEME):
        from services.shard.s3_store import open_bucket  # boto3 is an extra and takes 0.3 s to import

        return open_bucket(destination, endpoint_url)
    if "://" in destination:
        raise BadDestinationError(f"{destination!r} is neither a directory nor s3://bucket/prefix")
    path = Path(destination)
    if not path.is_absolute():
        raise BadDestinationError(f"directory {destination!r} must be absolute: each node has a working directory")
    return DirectoryStore(path)


def read_small(store: ObjectStore, key: str, sha256: str = "") -> bytes:
    """A whole small object, verified when `sha256` is given.

    Raises ObjectMissingError, ObjectDamagedError, ObjectStoreError.
    """
    data = bytearray()
    for piece in store.pieces(key):
        data += piece
        if len(data) > SMALL_BYTES_MAX:
            raise ObjectDamagedError(f"{key}: more than {SMALL_BYTES_MAX} bytes")
    if sha256 and (found := hashlib.sha256(data).hexdigest()) != sha256:
        raise ObjectDamagedError(f"{key}: sha256 is {found}, expected {sha256}")
    return bytes(data)


def verify(store: ObjectStore, key: str, sha256: str, size: int) -> None:
    """Read an object to its end. Raises ObjectMissingError, ObjectDamagedError, ObjectStoreError."""
    for _ in _verified(store, key, sha256, size):
        pass


def fetch(store: ObjectStore, key: str, path: Path, sha256: str, size: int) -> None:
    """Download to a new file, which is not synced: whoever keeps it syncs it. On any error there is no file.

    Raises ObjectMissingError, ObjectDamagedError, ObjectStoreError, OSError.
    """
    try:
        with path.open("xb") as file:
            for piece in _verified(store, key, sha256, size):
                file.write(piece)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _verified(store: ObjectStore, key: str, sha256: str, size: int) -> Iterator[bytes]:
    digest, length = hashlib.sha256(), 0
    for piece in store.pieces(key):
        digest.update(piece)
        length += len(piece)
        if length > size:
            break
        yield piece
    if length != size:
        raise ObjectDamagedError(f"{key}: {'more' if length > size else length} bytes, expected {size}")
    if digest.hexdigest() != sha256:
        raise ObjectDamagedError(f"{key}: sha256 is {digest.hexdigest()}, expected {sha256}")


class DirectoryStore:
    """Keys are files below a directory, each written aside, fsynced and renamed."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def put_file(self, key: str, path: Path) -> None:
        with _translated(f"{self._root}/{key}"), path.open("rb") as source, self._written(key) as target:
            while piece := source.read(PIECE_BYTES):
                target.write(piece)

    def put(self, key: str, data: bytes) -> None:
        with _translated(f"{self._root}/{key}"), self._written(key) as target:
            target.write(data)

    def keys(self, prefix: str) -> Iterator[str]:
        with _translated(str(self._root)):
            found = [path for path in (self._root / prefix).rglob("*") if path.is_file()]
        yield from sorted(path.relative_to(self._root).as_posix() for path in found)

    def names(self) -> list[str]:
        with _translated(str(self._root)):
            return sorted(path.name for path in self._root.iterdir()) if self._root.is_dir() else []

    def pieces(self, key: str) -> Iterator[bytes]:
        with _translated(f"{self._root}/{key}"), self._path(key).open("rb") as file:
            while piece := file.read(PIECE_BYTES):
                yield piece

    def exists(self, key: str) -> bool:
        with _translated(f"{self._root}/{key}"):
            return self._path(key).is_file()

    def _path(self, key: str) -> Path:
        parts = key.split("/")
        if not all(part and part not in (".", "..") for part in parts):
            raise BadDestinationError(f"{key!r} is not a key")
        return self._root.joinpath(*parts)

    @contextmanager
    def _written(self, key: str) -> Iterator[BinaryIO]:
        path = self._path(key)
        made = _directories(path.parent)
        aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        try:
            with aside.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)
        for directory in (path.parent, *made):
            sync_directory(directory)


def _directories(path: Path) -> list[Path]:
    """Make `path` and its parents; the directories that got a new entry by it."""
    missing = [each for each in (path, *path.parents) if not each.is_dir()]
    path.mkdir(parents=True, exist_ok=True)
    return [each.parent for each in missing]


@contextmanager
def _translated(what: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise ObjectMissingError(f"{what} does not exist") from error
    except OSError as error:
        raise ObjectStoreError(f"{what}: {error.strerror or error}") from error
