"""An S3 server (moto) in the test's process on a free loopback port, with a bucket and made-up credentials."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass

import pytest


@dataclass(frozen=True, slots=True)
class S3Server:
    endpoint_url: str
    bucket: str


@pytest.fixture
def s3_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """The server, empty but for the bucket; the environment holds credentials for it."""
    boto3 = pytest.importorskip("boto3", reason="the s3 extra is not installed")
    moto_server = pytest.importorskip("moto.server", reason="moto is not installed")
    credentials = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
    for name, value in {**credentials, "AWS_EC2_METADATA_DISABLED": "true"}.items():
        monkeypatch.setenv(name, value)
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    made = S3Server(f"http://{host}:{port}", f"snapshots-{secrets.token_hex(4)}")  # moto's state outlives its servers
    client = boto3.client("s3", endpoint_url=made.endpoint_url)
    try:
        client.create_bucket(Bucket=made.bucket)
        yield made
    finally:
        client.close()
        server.stop()
