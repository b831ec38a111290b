"""A process from its command line to its exit code."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.runtime.config import ConfigError, parse
from services.runtime.lifecycle import Lifecycle, Seat, State, run_process, seat_of
from tests.inprocess import mesh_config, running_server

WAIT_S = 60


def write_mesh(directory: Path, extra: str = "", address: str = "127.0.0.1:0") -> Path:
    mesh_config(directory)
    file = directory / "mesh.toml"
    file.write_text(f'[embed]\naddresses = ["{address}"]\n{extra}', encoding="utf-8")
    return file


@contextlib.asynccontextmanager
async def process(manner: str, file: Path, *more: str) -> AsyncIterator[asyncio.subprocess.Process]:
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.unit.process_under_test", manner, "--mesh-file", str(file), *more,
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        yield child
    finally:
        if child.returncode is None:
            child.kill()
        await child.communicate()


async def line_with(child: asyncio.subprocess.Process, event: str) -> dict[str, object]:
    """The next log line of this event."""
    assert child.stderr is not None
    async with asyncio.timeout(WAIT_S):
        while text := await child.stderr.readline():
            with contextlib.suppress(json.JSONDecodeError):
                line: dict[str, object] = json.loads(text)
                if line["event"] == event:
                    return line
    raise AssertionError(f"the process ended without {event!r}")


async def end_of(child: asyncio.subprocess.Process) -> tuple[int, str]:
    """Exit code and what was left on stderr."""
    async with asyncio.timeout(WAIT_S):
        _, rest = await child.communicate()
    assert child.returncode is not None
    return child.returncode, rest.decode()


@pytest.mark.processes
async def test_sigterm_drains_and_exits_0(tmp_path: Path) -> None:
    async with process("stops", write_mesh(tmp_path)) as child:
        line = await line_with(child, "serving")
        assert (line["service"], line["instance"]) == ("embed", "0")
        child.send_signal(signal.SIGTERM)
        assert (await line_with(child, "stopping"))["why"] == "SIGTERM"
        assert (await end_of(child))[0] == 0
    assert (tmp_path / ".mesh" / "traces").is_dir()


@pytest.mark.processes
async def test_a_second_signal_means_now(tmp_path: Path) -> None:
    async with process("hangs", write_mesh(tmp_path, "[mesh]\ndrain_s = 600\n")) as child:
        await line_with(child, "serving")
        child.send_signal(signal.SIGINT)
        await line_with(child, "stopping")
        child.send_signal(signal.SIGTERM)
        code, rest = await end_of(child)
    assert code == 128 + signal.SIGTERM
    assert "second signal" in rest


@pytest.mark.processes
async def test_a_drain_that_hangs_is_cut_off(tmp_path: Path) -> None:
    async with process("hangs", write_mesh(tmp_path, "[mesh]\ndrain_s = 0.1\n")) as child:
        await line_with(child, "serving")
        child.send_signal(signal.SIGTERM)
        code, rest = await end_of(child)
    assert code == 1
    assert "cut off" in rest


@pytest.mark.processes
async def test_a_port_in_use_ends_with_one_line_and_1(tmp_path: Path) -> None:
    async with running_server(mesh_config(tmp_path)) as server:
        file = write_mesh(tmp_path, address=f"127.0.0.1:{server.port}")
        async with process("stops", file) as child:
            code, rest = await end_of(child)
    assert code == 1
    assert f"embed: cannot listen on 127.0.0.1:{server.port}: the port is in use" in rest
    assert "Traceback" not in rest


@pytest.mark.processes
async def test_a_defect_ends_with_1_and_a_traceback_in_the_log(tmp_path: Path) -> None:
    async with process("fails", write_mesh(tmp_path)) as child:
        line = await line_with(child, "the process failed")
        assert "a defect" in str(line["traceback"])
        assert (await end_of(child))[0] == 1


@pytest.mark.processes
async def test_a_damaged_certificate_ends_with_its_name_and_2(tmp_path: Path) -> None:
    file = write_mesh(tmp_path)
    (tmp_path / ".mesh" / "certs" / "embed.pem").write_text("junk", encoding="utf-8")
    async with process("stops", file) as child:
        code, rest = await end_of(child)
    assert code == 2
    assert "embed.pem is not a readable PEM certificate" in rest
    assert "Traceback" not in rest


async def _nothing(*_: object) -> None:
    raise AssertionError("main must not run")


def test_wrong_configuration_is_one_line_and_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "mesh.toml"
    file.write_text("[embed]\nthread = 1\n", encoding="utf-8")
    assert run_process("embed", "", _nothing, ["--mesh-file", str(file)]) == 2
    assert capsys.readouterr().err.startswith("embed: [embed] has no key 'thread'")
    file.write_text("", encoding="utf-8")
    assert run_process("embed", "", _nothing, ["--mesh-file", str(file), "--index", "3"]) == 2
    assert "--index 3" in capsys.readouterr().err
    assert run_process("shard", "", _nothing, ["--mesh-file", str(file), "--node", "n9"]) == 2
    assert "--node 'n9' is not in" in capsys.readouterr().err
    file.write_text('[telemetry]\notlp_endpoint = "http://elsewhere:4317"\n', encoding="utf-8")
    assert run_process("embed", "", _nothing, ["--mesh-file", str(file)]) == 2
    assert "in the clear" in capsys.readouterr().err


def test_seats(tmp_path: Path) -> None:
    nodes = {"a": {"address": "h:1"}}
    config = parse({"nodes": nodes, "embed": {"addresses": ["h:2", "h:3"]}}, tmp_path / "mesh.toml", {})
    assert seat_of(config, "shard", node="a") == Seat("a", "h:1", "a", node="a")
    assert seat_of(config, "embed", index=1) == Seat("embed", "h:3", "1", index=1)
    for index in (-1, 2):
        with pytest.raises(ConfigError, match="--index"):
            seat_of(config, "embed", index=index)


async def test_every_illegal_move_has_its_message() -> None:
    life = Lifecycle(Seat("embed", "h:1", "0"))
    assert life.state is State.STARTING
    life.serving()
    with pytest.raises(AssertionError, match="a process that is serving cannot become serving"):
        life.serving()
    life.request_stop("test")
    life.request_stop("again")
    await life.stop_requested()
    with pytest.raises(AssertionError, match="a process that is draining cannot become serving"):
        life.serving()
    life.stopped()
    life.request_stop("too late")
    with pytest.raises(AssertionError, match="a process that is stopped cannot become stopped"):
        life.stopped()
