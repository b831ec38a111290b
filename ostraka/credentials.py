"""The client's half of mutual TLS: who it trusts and who it is.

A certificates directory holds `ca.pem`, and `NAME.pem` with `NAME.key` per identity; `ostraka certs` makes one.
There is no way to connect without them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import grpc

from ostraka.errors import CertificateError

IDENTITY_DEFAULT = "client"
ROUTER_NAME = "router.ostraka.internal"
"""The name that a router's certificate carries, wherever the router runs."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """PEM bytes of the authority, the certificate chain and its private key."""

    ca_pem: bytes
    certificate_pem: bytes
    key_pem: bytes = field(repr=False)

    @classmethod
    def from_directory(cls, directory: Path | str, identity: str = IDENTITY_DEFAULT) -> Credentials:
        """Read `ca.pem`, `IDENTITY.pem` and `IDENTITY.key`. Raises CertificateError naming the file."""
        folder = Path(directory)
        return cls.from_files(folder / "ca.pem", folder / f"{identity}.pem", folder / f"{identity}.key")

    @classmethod
    def from_files(cls, ca: Path | str, certificate: Path | str, key: Path | str) -> Credentials:
        """Read three PEM files. Raises CertificateError naming the file."""
        return cls(
            _read(Path(ca), b"CERTIFICATE"), _read(Path(certificate), b"CERTIFICATE"), _read(Path(key), b"PRIVATE KEY")
        )

    def channel_credentials(self) -> grpc.ChannelCredentials:
        return grpc.ssl_channel_credentials(self.ca_pem, self.key_pem, self.certificate_pem)


def _read(path: Path, kind: bytes) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CertificateError(f"{path}: {error.strerror}; `ostraka certs` makes certificates") from error
    if b"-----BEGIN" not in content or kind not in content:
        raise CertificateError(f"{path}: holds no PEM {kind.decode().lower()}")
    return content
