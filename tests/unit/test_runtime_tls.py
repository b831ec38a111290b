"""Certificates carry roles, damaged files are named, and replaced ones are taken up without a restart."""

from __future__ import annotations

import asyncio
import ssl
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509

from services.runtime import tls
from services.runtime.certificate_files import CertificateFiles
from services.runtime.config import ConfigError, parse
from services.runtime.tls import Role, channel_credentials, create_dev_ca, dev_certificates, issue, server_credentials
from tests.inprocess import mesh_config, running_server


def test_a_mesh_gets_every_certificate_it_needs(tmp_path: Path) -> None:
    config = mesh_config(tmp_path)
    names = {"embed", "router", "generator", "client", "admin", "n1", "n2", "n3"}
    for name in names:
        key, certificate = config.certs_dir / f"{name}.key", config.certs_dir / f"{name}.pem"
        assert stat.S_IMODE(key.stat().st_mode) == 0o600
        loaded = x509.load_pem_x509_certificate(certificate.read_bytes())
        san = loaded.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        dns = san.get_values_for_type(x509.DNSName)
        role = "shard" if name.startswith("n") else name
        assert dns == ["localhost", f"{role}.ostraka.internal"]
        assert {str(a) for a in san.get_values_for_type(x509.IPAddress)} == {"127.0.0.1", "::1"}
    assert {path.stem for path in config.certs_dir.glob("*.pem")} == names | {"ca"}
    assert stat.S_IMODE((config.certs_dir / "ca.key").stat().st_mode) == 0o600


def test_good_certificates_are_kept_and_bad_ones_replaced(tmp_path: Path) -> None:
    config = mesh_config(tmp_path)
    assert dev_certificates(config) == []
    (config.certs_dir / "router.pem").write_bytes(b"nonsense")
    assert dev_certificates(config) == [config.certs_dir / "router.pem"]
    issue(config.certs_dir, "client", Role.ADMIN)
    assert dev_certificates(config) == [config.certs_dir / "client.pem"]


def test_addresses_of_the_mesh_are_in_the_certificate(tmp_path: Path) -> None:
    nodes = {"n1": {"address": "shard-1.example:7"}}
    config = parse({"nodes": nodes, "embed": {"addresses": ["10.0.0.9:1"]}}, tmp_path / "mesh.toml", {})
    dev_certificates(config)
    node = x509.load_pem_x509_certificate((config.certs_dir / "n1.pem").read_bytes())
    assert "shard-1.example" in str(node.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    assert dev_certificates(config) == []


@pytest.mark.parametrize("name", ["router", "ca", "admin"])
def test_a_node_cannot_take_the_name_of_a_certificate(tmp_path: Path, name: str) -> None:
    config = parse({"nodes": {name: {"address": "h:1"}}}, tmp_path / "mesh.toml", {})
    with pytest.raises(ConfigError, match=f"nodes.{name}"):
        dev_certificates(config)


def _swap_key(certs: Path) -> None:
    (certs / "router.key").write_bytes((certs / "embed.key").read_bytes())


def _swap_ca(certs: Path) -> None:
    for name in ("ca.pem", "ca.key"):
        (certs / name).unlink()
    create_dev_ca(certs)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda certs: (certs / "router.pem").write_bytes(b"junk"), r"router\.pem is not a readable PEM certificate"),
        (lambda certs: (certs / "router.key").write_bytes(b"junk"), r"router\.key is not a readable PEM private key"),
        (lambda certs: (certs / "ca.pem").write_bytes(b""), r"ca\.pem is not a readable PEM certificate"),
        (lambda certs: (certs / "router.pem").unlink(), r"router\.pem does not exist; `ostraka certs`"),
        (_swap_key, r"router\.key is not the key of .*router\.pem"),
        (_swap_ca, r"router\.pem was not issued by .*ca\.pem"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, damage: Callable[[Path], None], message: str) -> None:
    config = mesh_config(tmp_path)
    damage(config.certs_dir)
    with pytest.raises(ConfigError, match=message):
        server_credentials(config.certs_dir, "router")
    with pytest.raises(ConfigError, match=message):
        channel_credentials(config.certs_dir, "router")


def test_an_expired_certificate_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tls, "LEAF_DAYS", -1)
    monkeypatch.setattr(tls, "BACKDATE_HOURS", 72)
    create_dev_ca(tmp_path)
    issue(tmp_path, "router", Role.ROUTER)
    with pytest.raises(ConfigError, match=r"router\.pem expired on"):
        CertificateFiles(tmp_path, "router").read()


def test_a_mismatched_ca_cannot_issue(tmp_path: Path) -> None:
    create_dev_ca(tmp_path / "a")
    create_dev_ca(tmp_path / "b")
    (tmp_path / "a" / "ca.key").write_bytes((tmp_path / "b" / "ca.key").read_bytes())
    with pytest.raises(ConfigError, match=r"ca\.key is not the key of"):
        issue(tmp_path / "a", "router", Role.ROUTER)


async def test_a_replaced_certificate_is_taken_up_without_restart(tmp_path: Path) -> None:
    config = mesh_config(tmp_path)
    async with running_server(config) as server:
        first = await _served_serial(config.certs_dir, server.port)
        issue(config.certs_dir, "embed", Role.EMBED)
        second = await _served_serial(config.certs_dir, server.port)
        assert second != first
        assert second == x509.load_pem_x509_certificate((config.certs_dir / "embed.pem").read_bytes()).serial_number
        (config.certs_dir / "embed.pem").write_bytes(b"half written")
        assert await _served_serial(config.certs_dir, server.port) == second


async def _served_serial(certs: Path, port: int) -> int:
    """Serial number of the certificate that a new connection is shown."""
    context = ssl.create_default_context(cafile=str(certs / "ca.pem"))
    context.load_cert_chain(certs / "client.pem", certs / "client.key")
    context.set_alpn_protocols(["h2"])
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname="localhost")
    der = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    return x509.load_der_x509_certificate(der).serial_number
