"""Mutual TLS: the development CA, the certificates, and the role each one carries.

Every certificate names its role as a DNS entry `<role>.ostraka.internal` in the subject alternative names. A
server learns its caller's role from there; a caller demands the server's role by overriding the target name.
Files in the certificate directory: `ca.pem`, `ca.key`, and NAME.pem with NAME.key (mode 0600) for each name.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import cast

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from observability.logs import logger
from services.runtime.atomic_file import write_atomically
from services.runtime.certificate_files import REMEDY, CertificateFiles, parse_certificate, parse_key, read_file
from services.runtime.clock import SYSTEM_CLOCK
from services.runtime.config import Config, ConfigError

CA_DAYS = 3_650
LEAF_DAYS = 397
"""Longest lifetime that common TLS clients accept."""
BACKDATE_HOURS = 24
"""Certificates begin this far in the past, for machines whose clocks differ."""
RENEW_DAYS = 30
"""`dev_certificates` replaces a certificate with less than this left."""
ROLE_DOMAIN = "ostraka.internal"
_LOG = logger("tls")


class Role(StrEnum):
    """Who a certificate speaks for."""

    CLIENT = "client"
    ROUTER = "router"
    EMBED = "embed"
    SHARD = "shard"
    GENERATOR = "generator"
    ADMIN = "admin"


def role_name(role: Role) -> str:
    """The DNS name that stands for `role` in a certificate."""
    return f"{role.value}.{ROLE_DOMAIN}"


def roles_of(names: Iterable[str]) -> frozenset[Role]:
    """The roles among the subject alternative names of a certificate."""
    known = {role_name(role): role for role in Role}
    return frozenset(known[name] for name in names if name in known)


def create_dev_ca(certs_dir: Path) -> None:
    """Make a CA for development in `certs_dir`, unless there is one. Raises ConfigError for a damaged one."""
    certs_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    if (certs_dir / "ca.pem").exists() and (certs_dir / "ca.key").exists():
        _load_ca(certs_dir)
        return
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Ostraka development CA")])
    usage = x509.KeyUsage(
        digital_signature=True, content_commitment=False, key_encipherment=False, data_encipherment=False,
        key_agreement=False, key_cert_sign=True, crl_sign=True, encipher_only=False, decipher_only=False,
    )  # fmt: skip
    certificate = (
        _builder(name, name, key.public_key(), CA_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .sign(key, hashes.SHA256())
    )
    _write_pair(certs_dir, "ca", key, certificate)


def issue(certs_dir: Path, name: str, role: Role, hosts: Iterable[str] = ()) -> None:
    """Make NAME.pem and NAME.key signed by the directory's CA, replacing what is there.

    SANs: localhost, the role's name, 127.0.0.1, ::1 and `hosts` (names or addresses). Raises ConfigError when
    the CA is missing or damaged.
    """
    ca_key, ca = _load_ca(certs_dir)
    key = ec.generate_private_key(ec.SECP256R1())
    dns, addresses = ["localhost", role_name(role)], ["127.0.0.1", "::1"]
    for host in hosts:
        known = addresses if _is_address(host) else dns
        if host not in known:
            known.append(host)
    san = [x509.DNSName(host) for host in dns] + [x509.IPAddress(ipaddress.ip_address(a)) for a in addresses]
    usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    certificate = (
        _builder(subject, ca.subject, key.public_key(), LEAF_DAYS)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName(san), critical=False)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    _write_pair(certs_dir, name, key, certificate)


def identities(config: Config) -> dict[str, Role]:
    """Every name that needs a certificate in this mesh, with its role. Raises ConfigError for a clash."""
    names = {role.value: role for role in (Role.EMBED, Role.ROUTER, Role.GENERATOR, Role.CLIENT, Role.ADMIN)}
    for node in config.nodes:
        if node in names or node == "ca":
            raise ConfigError(f"[nodes.{node}]: {node!r} is the name of a certificate; choose another node name")
        names[node] = Role.SHARD
    return names


def dev_certificates(config: Config) -> list[Path]:
    """Make the CA and every certificate this mesh needs; keep those still good. Returns the files written."""
    create_dev_ca(config.certs_dir)
    written: list[Path] = []
    for name, role in identities(config).items():
        hosts = sorted({address.rpartition(":")[0].strip("[]") for address in _addresses(config, name)})
        if not _still_good(config.certs_dir, name, role, hosts):
            issue(config.certs_dir, name, role, hosts)
            written.append(config.certs_dir / f"{name}.pem")
    return written


def server_credentials(certs_dir: Path, name: str) -> grpc.ServerCredentials:
    """Credentials of a server called `name` that demand a client certificate of the same CA.

    The files are looked at again for each new connection, so replacing them needs no restart. Raises
    ConfigError naming the file that is missing, damaged, expired or does not fit.
    """
    files = CertificateFiles(certs_dir, name)
    key, chain, ca = files.read()
    initial = grpc.ssl_server_certificate_configuration([(key, chain)], root_certificates=ca)
    return grpc.dynamic_ssl_server_credentials(initial, _reloader(files, name), require_client_authentication=True)


def channel_credentials(certs_dir: Path, name: str) -> grpc.ChannelCredentials:
    """Credentials of a caller called `name`. Raises ConfigError as `server_credentials` does."""
    key, chain, ca = CertificateFiles(certs_dir, name).read()
    return grpc.ssl_channel_credentials(root_certificates=ca, private_key=key, certificate_chain=chain)


def _reloader(files: CertificateFiles, name: str) -> Callable[[], grpc.ServerCertificateConfiguration]:
    unchanged = cast(grpc.ServerCertificateConfiguration, None)  # gRPC's own word for it, absent from its stubs

    def fetch() -> grpc.ServerCertificateConfiguration:
        if not files.changed():
            return unchanged
        try:
            key, chain, ca = files.read()
        except ConfigError as error:
            _LOG.warning("certificate not reloaded, the old one stays", name=name, error=str(error))
            return unchanged
        _LOG.info("certificate reloaded", name=name)
        return grpc.ssl_server_certificate_configuration([(key, chain)], root_certificates=ca)

    return fetch


def _still_good(certs_dir: Path, name: str, role: Role, hosts: Iterable[str]) -> bool:
    try:
        _, chain, _ = CertificateFiles(certs_dir, name).read()
    except ConfigError:
        return False
    certificate = x509.load_pem_x509_certificate(chain)
    try:
        san = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return False
    names = set(san.get_values_for_type(x509.DNSName))
    names |= {str(address) for address in san.get_values_for_type(x509.IPAddress)}
    fresh = certificate.not_valid_after_utc - _now() > timedelta(days=RENEW_DAYS)
    return fresh and roles_of(names) == {role} and names.issuperset(hosts)


def _addresses(config: Config, name: str) -> Iterable[str]:
    if name in config.nodes:
        return (config.nodes[name].address,)
    services: dict[str, tuple[str, ...]] = {
        "embed": config.embed.addresses,
        "router": config.router.addresses,
        "generator": config.generator.addresses,
    }
    return services.get(name, ())


def _load_ca(certs_dir: Path) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    key = parse_key(read_file(certs_dir / "ca.key"), certs_dir / "ca.key")
    certificate = parse_certificate(read_file(certs_dir / "ca.pem"), certs_dir / "ca.pem")
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        raise ConfigError(f"{certs_dir / 'ca.key'} is not the key of {certs_dir / 'ca.pem'}; {REMEDY}")
    return key, certificate


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = _now()
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=BACKDATE_HOURS))
        .not_valid_after(now + timedelta(days=days))
    )


def _write_pair(certs_dir: Path, name: str, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> None:
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    write_atomically(certs_dir / f"{name}.key", pem, mode=0o600)
    write_atomically(certs_dir / f"{name}.pem", certificate.public_bytes(serialization.Encoding.PEM))


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _now() -> datetime:
    return datetime.fromtimestamp(SYSTEM_CLOCK.wall_ms() / 1_000, UTC)
