"""The commands: help, JSON, messages and exit codes, without a mesh."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ostraka import errors
from ostraka.cli import exit_codes
from ostraka.cli.exit_codes import ExitCode, exit_code_of
from ostraka.cli.main import app
from ostraka.cli.mesh_file import mesh_toml
from ostraka.cli.supervisor import SupervisorError
from services.runtime.config import ConfigError, load

COMMANDS = ("demo", "up", "down", "status", "certs", "ingest", "ask", "search", "get", "delete", "trace")
RUNNER = CliRunner()


@pytest.fixture
def mesh_file(tmp_path: Path) -> Path:
    path = tmp_path / "mesh.toml"
    ports = {"embed": 1, "router": 2, "generator": 3, "node-a": 4, "node-b": 5, "node-c": 6}
    path.write_text(mesh_toml(ports=ports))
    return path


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself_and_speaks_json(name: str) -> None:
    result = RUNNER.invoke(app, [name, "--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    assert "--json" in result.output
    assert len(result.output.split()) > 30


def test_help_lists_all_commands_and_exit_codes() -> None:
    output = RUNNER.invoke(app, ["--help"], env={"COLUMNS": "200"}).output
    assert [name for name in COMMANDS if name not in output] == []
    assert "Exit codes" in output


@pytest.mark.parametrize(
    "arguments",
    [
        ["unknown"],
        ["ask"],
        ["search", "x", "-k", "0"],
        ["search", "x", "--timeout", "0"],
        ["ingest", ".", "--words", "5"],
        ["ingest", ".", "--words", "30", "--overlap", "30"],
        ["ask", "x", "--consistency", "always"],
        ["trace", "xyz"],
        ["trace", "ab"],
    ],
)
def test_wrong_usage_is_2(arguments: list[str], mesh_file: Path) -> None:
    assert RUNNER.invoke(app, arguments, env={"OSTRAKA_MESH_FILE": str(mesh_file)}).exit_code == ExitCode.USAGE


@pytest.mark.parametrize("name", ["status", "down"])
def test_a_missing_mesh_file_is_2_and_says_what_to_do(name: str, tmp_path: Path) -> None:
    result = RUNNER.invoke(app, [name, "--mesh-file", str(tmp_path / "none.toml"), "--json"])
    assert result.exit_code == ExitCode.USAGE
    message = json.loads(result.stderr)["error"]
    assert message["type"] == "ConfigError"
    assert "ostraka up" in message["message"]


def test_without_certificates_the_remedy_is_named(mesh_file: Path) -> None:
    result = RUNNER.invoke(app, ["search", "x", "--mesh-file", str(mesh_file)], env={"COLUMNS": "400"})
    assert result.exit_code == ExitCode.USAGE
    assert "ca.pem" in result.stderr
    assert "ostraka certs" in result.stderr


def test_certs_makes_them_once(mesh_file: Path) -> None:
    first = RUNNER.invoke(app, ["certs", "--mesh-file", str(mesh_file), "--json"])
    again = RUNNER.invoke(app, ["certs", "--mesh-file", str(mesh_file), "--json"])
    assert first.exit_code == again.exit_code == 0
    names = {Path(path).name for path in json.loads(first.stdout)["written"]}
    assert names == {
        f"{n}.pem" for n in ("embed", "router", "generator", "client", "admin", "node-a", "node-b", "node-c")
    }
    assert json.loads(again.stdout)["written"] == []


def test_an_unreachable_mesh_is_3(mesh_file: Path) -> None:
    RUNNER.invoke(app, ["certs", "--mesh-file", str(mesh_file)])
    status = RUNNER.invoke(app, ["status", "--mesh-file", str(mesh_file), "--json"])
    assert status.exit_code == ExitCode.UNAVAILABLE
    assert json.loads(status.stdout)["mesh"] is None
    search = RUNNER.invoke(app, ["search", "x", "--mesh-file", str(mesh_file), "--timeout", "1"])
    assert search.exit_code == ExitCode.UNAVAILABLE


def test_down_with_nothing_running_stops_nothing(mesh_file: Path) -> None:
    result = RUNNER.invoke(app, ["down", "--mesh-file", str(mesh_file), "--json"])
    assert (result.exit_code, json.loads(result.stdout)) == (0, {"stopped": [], "killed": []})


def test_a_trace_that_does_not_exist_is_1(mesh_file: Path) -> None:
    assert RUNNER.invoke(app, ["trace", "abcdef", "-m", str(mesh_file)]).exit_code == ExitCode.FAILED
    assert RUNNER.invoke(app, ["trace", "last", "-m", str(mesh_file)]).exit_code == ExitCode.FAILED


def test_the_demonstration_empties_only_its_own_folder(tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("keep me")
    result = RUNNER.invoke(app, ["demo", "--directory", str(tmp_path)], env={"COLUMNS": "400"})
    assert result.exit_code == ExitCode.USAGE
    assert "not empty" in result.stderr
    assert (tmp_path / "precious.txt").read_text() == "keep me"


def test_every_error_of_the_client_has_an_exit_code() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.OstrakaError)]
    codes = {
        kind.__name__: exit_code_of(kind("m"))
        for kind in kinds
        if not issubclass(kind, errors.WriteError)  # commands report outcomes themselves
    }
    assert codes["Overloaded"] is codes["Unavailable"] is codes["DeadlineExceeded"] is ExitCode.UNAVAILABLE
    assert codes["PermissionDenied"] is codes["Unauthenticated"] is ExitCode.REFUSED
    assert codes["InvalidRequest"] is codes["CertificateError"] is ExitCode.USAGE
    assert codes["ServerError"] is ExitCode.FAILED
    assert exit_code_of(ConfigError("m")) is ExitCode.USAGE
    assert exit_code_of(SupervisorError("m")) is ExitCode.FAILED
    documented = exit_codes.__doc__ or ""
    assert [code for code in ExitCode if str(code.value) not in documented.split()] == []


def test_the_default_mesh_file_is_a_valid_one(tmp_path: Path) -> None:
    path = tmp_path / "mesh.toml"
    path.write_text(mesh_toml())
    config = load(path, {})
    assert list(config.nodes) == ["node-a", "node-b", "node-c"]
    docs = config.collections["docs"]
    assert (docs.shards, docs.replicas, docs.read_quorum, docs.write_quorum) == (2, 3, 2, 2)
