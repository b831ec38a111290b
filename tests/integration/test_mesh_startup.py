"""Processes that cannot start say why in one line, name the file or address, and end with the right exit code."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from ostraka.cli.mesh_file import NODES_DEFAULT, free_ports, mesh_toml, prepare
from services.runtime.config import Config, child_environment

pytestmark = pytest.mark.processes

CONFIG_ERROR = 2
START_ERROR = 1
ENDS_WITHIN_S = 60
SHARD = ("services.shard", "--node", NODES_DEFAULT[0])
ROUTER = ("services.router",)
EMBED = ("services.embed",)
GENERATOR = ("services.generator",)


@dataclass(frozen=True, slots=True)
class Ended:
    """How a process ended."""

    code: int
    errors: str

    @property
    def reason(self) -> str:
        """The last line on standard error that is not a JSON log line."""
        plain = [line for line in self.errors.splitlines() if line and not line.startswith("{")]
        return plain[-1] if plain else ""


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """A prepared mesh of which nothing runs."""
    path = tmp_path / "mesh.toml"
    path.write_text(mesh_toml(ports=free_ports(("embed", "router", "generator", *NODES_DEFAULT))), encoding="utf-8")
    return prepare(path)


@pytest.fixture
def running_node(config: Config) -> Iterator[subprocess.Popen[bytes]]:
    """The first shard node, listening."""
    process = subprocess.Popen(_command(config, SHARD), stderr=subprocess.PIPE)
    assert process.stderr is not None
    try:
        # The pipe ends when the process does, so this ends too.
        for line in process.stderr:
            if b'"listening"' in line:
                break
        yield process
    finally:
        process.kill()
        process.communicate()


def run(config: Config, what: tuple[str, ...], **environment: str) -> Ended:
    """Start one process and wait for the end that must come."""
    done = subprocess.run(
        _command(config, what),
        capture_output=True,
        text=True,
        timeout=ENDS_WITHIN_S,
        check=False,
        env=child_environment(**environment),
    )
    assert "Traceback" not in done.stderr
    return Ended(done.returncode, done.stderr)


def _command(config: Config, what: tuple[str, ...]) -> list[str]:
    module, *arguments = what
    return [sys.executable, "-m", module, "--mesh-file", str(config.path), *arguments]


@pytest.mark.parametrize(("what", "name"), [(SHARD, NODES_DEFAULT[0]), (ROUTER, "router"), (GENERATOR, "generator")])
def test_a_corrupt_certificate_is_named(config: Config, what: tuple[str, ...], name: str) -> None:
    damaged = config.certs_dir / f"{name}.pem"
    damaged.write_bytes(damaged.read_bytes()[:200])
    ended = run(config, what)
    assert ended.code == CONFIG_ERROR
    assert str(damaged) in ended.reason


def test_a_key_of_another_certificate_is_named(config: Config) -> None:
    key = config.certs_dir / f"{NODES_DEFAULT[0]}.key"
    key.write_bytes((config.certs_dir / f"{NODES_DEFAULT[1]}.key").read_bytes())
    ended = run(config, SHARD)
    assert ended.code == CONFIG_ERROR
    assert str(key) in ended.reason


def test_a_wrong_model_hash_is_named(config: Config) -> None:
    ended = run(config, EMBED, OSTRAKA_EMBED_MODEL_SHA256="0" * 64)
    assert ended.code in (START_ERROR, CONFIG_ERROR)
    assert "sha256" in ended.reason
    assert "0000000000000000" in ended.reason


def test_a_port_in_use_is_named(config: Config, running_node: subprocess.Popen[bytes]) -> None:
    assert running_node.poll() is None
    other = config.path.with_name("other.toml")
    address = config.nodes[NODES_DEFAULT[0]].address
    ports = free_ports(("embed", "router", "generator", *NODES_DEFAULT))
    ports[NODES_DEFAULT[0]] = int(address.rpartition(":")[2])
    other.write_text(mesh_toml("other", ports), encoding="utf-8")
    ended = run(prepare(other), SHARD)
    assert ended.code == START_ERROR
    assert address in ended.reason
    assert running_node.poll() is None


def test_an_unknown_key_and_an_unknown_node_are_named(config: Config) -> None:
    ended = run(config, ("services.shard", "--node", "nobody"))
    assert ended.code == CONFIG_ERROR
    assert "nobody" in ended.reason
    config.path.write_text(config.path.read_text(encoding="utf-8") + "\n[nodez.x]\n", encoding="utf-8")
    ended = run(config, SHARD)
    assert ended.code == CONFIG_ERROR
    assert "nodez" in ended.reason
