"""A bucket behind the S3 API; the only module that imports boto3, and only when a destination asks for it.

Credentials and region come from where boto3 looks: environment, shared files, instance role. Uploads go in parts, one
at a time, so that memory stays at two parts whatever a file's size.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from services.shard.object_store import (
    PIECE_BYTES,
    S3_SCHEME,
    BadDestinationError,
    ObjectMissingError,
    ObjectStoreError,
)

PART_BYTES = 8 * 1024 * 1024
CONNECT_S = 5
READ_S = 30
ATTEMPTS = 4
_MISSING = frozenset({"404", "NoSuchKey", "NotFound"})


def open_bucket(destination: str, endpoint_url: str) -> BucketStore:
    """The store at `s3://bucket/prefix`. Raises BadDestinationError, also when the `s3` extra is not installed."""
    bucket, _, prefix = destination.removeprefix(S3_SCHEME).partition("/")
    if not bucket:
        raise BadDestinationError(f"{destination!r} names no bucket; expected s3://bucket/prefix")
    try:
        import boto3
        import botocore.config
        import botocore.exceptions
    except ImportError as error:
        raise BadDestinationError(f"{destination!r} needs boto3: pip install 'ostraka[s3]'") from error
    settings = botocore.config.Config(
        connect_timeout=CONNECT_S,
        read_timeout=READ_S,
        retries={"max_attempts": ATTEMPTS, "mode": "standard"},
        proxies={} if endpoint_url else None,
    )
    try:
        client = boto3.client("s3", endpoint_url=endpoint_url or None, config=settings)
    except (botocore.exceptions.BotoCoreError, ValueError) as error:
        raise BadDestinationError(f"{destination!r}: {error}") from error
    return BucketStore(client, bucket, prefix.strip("/"))


class BucketStore:
    """Keys are object names below a prefix."""

    def __init__(self, client: Any, bucket: str, prefix: str) -> None:
        self._client = client
        self._bucket = bucket
        self._prefix = f"{prefix}/" if prefix else ""

    def put_file(self, key: str, path: Path) -> None:
        from boto3.s3.transfer import TransferConfig

        one_part_at_a_time = TransferConfig(
            multipart_threshold=PART_BYTES, multipart_chunksize=PART_BYTES, use_threads=False
        )
        with self._translated(key):
            self._client.upload_file(str(path), self._bucket, self._prefix + key, Config=one_part_at_a_time)

    def put(self, key: str, data: bytes) -> None:
        with self._translated(key):
            self._client.put_object(Bucket=self._bucket, Key=self._prefix + key, Body=data)

    def keys(self, prefix: str) -> Iterator[str]:
        with self._translated(prefix):
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket, Prefix=self._prefix + prefix
            )
            for page in pages:
                for entry in page.get("Contents", ()):
                    yield entry["Key"].removeprefix(self._prefix)

    def names(self) -> list[str]:
        found: set[str] = set()
        with self._translated(""):
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket, Prefix=self._prefix, Delimiter="/"
            )
            for page in pages:
                found |= {entry["Prefix"].removeprefix(self._prefix) for entry in page.get("CommonPrefixes", ())}
                found |= {entry["Key"].removeprefix(self._prefix) for entry in page.get("Contents", ())}
        return sorted(name.strip("/") for name in found)

    def pieces(self, key: str) -> Iterator[bytes]:
        with self._translated(key):
            body = self._client.get_object(Bucket=self._bucket, Key=self._prefix + key)["Body"]
            try:
                while piece := body.read(PIECE_BYTES):
                    yield piece
            finally:
                body.close()

    def exists(self, key: str) -> bool:
        try:
            with self._translated(key):
                self._client.head_object(Bucket=self._bucket, Key=self._prefix + key)
        except ObjectMissingError:
            return False
        return True

    @contextmanager
    def _translated(self, key: str) -> Iterator[None]:
        import boto3.exceptions
        import botocore.exceptions

        where = f"{S3_SCHEME}{self._bucket}/{self._prefix}{key}"
        try:
            yield
        except botocore.exceptions.ClientError as error:
            code = str(error.response.get("Error", {}).get("Code", ""))
            if code in _MISSING:
                raise ObjectMissingError(f"{where} does not exist") from error
            raise ObjectStoreError(f"{where}: {error}") from error
        except botocore.exceptions.NoCredentialsError as error:
            raise ObjectStoreError(
                f"{where}: no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            ) from error
        except (botocore.exceptions.BotoCoreError, boto3.exceptions.Boto3Error) as error:
            raise ObjectStoreError(f"{where}: {error}") from error
