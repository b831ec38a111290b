"""One identity's certificate files: read, verified, and watched for replacement."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

from services.runtime.clock import SYSTEM_CLOCK
from services.runtime.config import ConfigError

REMEDY = "`ostraka certs` makes new ones"


class CertificateFiles:
    """`ca.pem`, NAME.pem and NAME.key of one directory."""

    def __init__(self, certs_dir: Path, name: str) -> None:
        self.ca_path = certs_dir / "ca.pem"
        self.chain_path = certs_dir / f"{name}.pem"
        self.key_path = certs_dir / f"{name}.key"
        self._seen: tuple[tuple[int, int, int], ...] = ()

    def read(self) -> tuple[bytes, bytes, bytes]:
        """Key, chain and CA in PEM, verified to fit together and to be valid now. Raises ConfigError naming the
        file at fault."""
        self._seen = self._stamp()
        key_pem, chain_pem, ca_pem = (read_file(p) for p in (self.key_path, self.chain_path, self.ca_path))
        chain, ca = parse_certificate(chain_pem, self.chain_path), parse_certificate(ca_pem, self.ca_path)
        if parse_key(key_pem, self.key_path).public_key() != chain.public_key():
            raise ConfigError(f"{self.key_path} is not the key of {self.chain_path}; {REMEDY}")
        try:
            chain.verify_directly_issued_by(ca)
        except (ValueError, TypeError, InvalidSignature):
            raise ConfigError(f"{self.chain_path} was not issued by {self.ca_path}; {REMEDY}") from None
        check_validity(chain, self.chain_path)
        check_validity(ca, self.ca_path)
        return key_pem, chain_pem, ca_pem

    def changed(self) -> bool:
        """Whether any file differs from what `read` saw last."""
        return self._stamp() != self._seen

    def _stamp(self) -> tuple[tuple[int, int, int], ...]:
        stamps = []
        for path in (self.key_path, self.chain_path, self.ca_path):
            try:
                stat = path.stat()
            except OSError:
                stamps.append((0, 0, 0))
            else:
                stamps.append((stat.st_mtime_ns, stat.st_size, stat.st_ino))
        return tuple(stamps)


def read_file(path: Path) -> bytes:
    """The file's bytes. Raises ConfigError."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist; {REMEDY}") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error


def parse_certificate(pem: bytes, path: Path) -> x509.Certificate:
    """The first certificate of `pem`. Raises ConfigError naming `path`."""
    try:
        return x509.load_pem_x509_certificate(pem)
    except ValueError:
        raise ConfigError(f"{path} is not a readable PEM certificate; {REMEDY}") from None


def parse_key(pem: bytes, path: Path) -> PrivateKeyTypes:
    """The private key of `pem`. Raises ConfigError naming `path`."""
    try:
        return serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError):
        raise ConfigError(f"{path} is not a readable PEM private key; {REMEDY}") from None


def check_validity(certificate: x509.Certificate, path: Path) -> None:
    """Raise ConfigError unless the certificate is valid now."""
    now = datetime.fromtimestamp(SYSTEM_CLOCK.wall_ms() / 1_000, UTC)
    if certificate.not_valid_after_utc <= now:
        raise ConfigError(f"{path} expired on {certificate.not_valid_after_utc:%Y-%m-%d}; {REMEDY}")
    if certificate.not_valid_before_utc > now:
        raise ConfigError(f"{path} is valid only from {certificate.not_valid_before_utc:%Y-%m-%d}; check the clock")
