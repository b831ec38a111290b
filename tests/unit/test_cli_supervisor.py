"""The supervisor signals only what it started, and says why a process died."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from ostraka.cli.mesh_file import NODES_DEFAULT, free_ports, mesh_toml, prepare
from ostraka.cli.process_record import ProcessRecord, read_record
from ostraka.cli.supervisor import Launch, Supervisor, SupervisorError, to_the_end
from services.runtime.config import Config, ConfigError, load


@pytest.fixture
def config(tmp_path: Path) -> Config:
    path = tmp_path / "mesh.toml"
    path.write_text(mesh_toml("data", free_ports(("embed", "router", "generator", *NODES_DEFAULT))))
    return prepare(path)


@pytest.fixture
def stranger() -> Iterator[subprocess.Popen[bytes]]:
    """A process that nobody may touch."""
    code = "import sys; sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code, "services.shard"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


def record_of(process: subprocess.Popen[bytes], **changes: object) -> ProcessRecord:
    record = ProcessRecord("node-a", process.pid, psutil.Process(process.pid).create_time(), "services.shard", "log")
    return replace(record, **changes)  # type: ignore[arg-type]  # names of fields, checked by replace


def test_a_record_stands_for_one_process_only(stranger: subprocess.Popen[bytes]) -> None:
    same = record_of(stranger)
    assert same.process() is not None
    assert record_of(stranger, created_s=same.created_s - 60).process() is None
    assert record_of(stranger, module="services.router").process() is None
    stranger.kill()
    stranger.wait()
    assert same.process() is None


def test_a_reused_process_id_is_left_alone(config: Config, stranger: subprocess.Popen[bytes]) -> None:
    supervisor = Supervisor(config)
    record_of(stranger, created_s=1.0).write(supervisor.run_dir)
    assert supervisor.running() == []
    with pytest.raises(SupervisorError, match="does not run"):
        supervisor.kill("node-a")
    assert supervisor.stop_all() == []
    assert stranger.poll() is None
    assert read_record(supervisor.run_dir, "node-a") is None, "the stale record is gone"


def test_records_survive_and_damaged_ones_are_ignored(tmp_path: Path) -> None:
    record = ProcessRecord("node-a", os.getpid(), 1.5, "m", "l")
    record.write(tmp_path)
    assert read_record(tmp_path, "node-a") == record
    (tmp_path / "node-a.json").write_text("{")
    assert read_record(tmp_path, "node-a") is None


def test_seats_follow_the_mesh_file(config: Config) -> None:
    supervisor = Supervisor(config)
    assert sorted(supervisor.seats) == ["embed-0", "generator-0", "node-a", "node-b", "node-c", "router-0"]
    with pytest.raises(SupervisorError, match="no process 'node-z'"):
        supervisor.start("node-z")


def test_a_node_named_like_a_process_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mesh.toml"
    path.write_text(mesh_toml().replace("node-a", "embed-0"))
    with pytest.raises(ConfigError, match="embed-0"):
        Supervisor(load(path, {}))


@pytest.mark.processes
async def test_a_process_that_dies_says_why(config: Config) -> None:
    (config.certs_dir / "node-a.pem").write_text("damaged")
    supervisor = Supervisor(config)
    try:
        supervisor.start("node-a")
        with pytest.raises(SupervisorError, match="node-a ended") as caught:
            await supervisor.wait_serving(["node-a"], timeout_s=60)
    finally:
        supervisor.stop_all()
    assert "node-a.pem" in str(caught.value)
    assert str(supervisor.log_path("node-a")) in str(caught.value)


@pytest.mark.processes
async def test_a_process_may_begin_behind_a_prefix_and_read_its_own_mesh_file(config: Config, tmp_path: Path) -> None:
    own = tmp_path / "own.toml"
    own.write_text(config.path.read_text())
    launch = Launch(("env", "OSTRAKA_PREFIXED=yes"), own)
    supervisor = Supervisor(config, lambda name: launch if name == "node-a" else Launch())
    try:
        supervisor.start("node-a")
        await supervisor.wait_serving(["node-a"], timeout_s=60)
        process = supervisor.process("node-a")
        assert process is not None
        assert process.environ()["OSTRAKA_PREFIXED"] == "yes"
        assert str(own) in process.cmdline()
    finally:
        supervisor.stop_all()
    assert supervisor.process("node-a") is None


@pytest.mark.processes
async def test_one_node_starts_dies_comes_back_and_stops(config: Config) -> None:
    supervisor = Supervisor(config)
    try:
        supervisor.start("node-a")
        with pytest.raises(SupervisorError, match="running already"):
            supervisor.start("node-a")
        elsewhere = Supervisor(config)
        assert elsewhere.running() == ["node-a"]
        elsewhere.kill("node-a")
        assert supervisor.running() == []
        supervisor.start("node-a")
        await elsewhere.wait_serving(["node-a"], timeout_s=60)
        assert Supervisor(config).stop_all() == []
        assert supervisor.running() == []
        assert list(supervisor.run_dir.glob("*.json")) == []
    finally:
        supervisor.stop_all()


@pytest.mark.processes
async def test_what_never_serves_is_said_in_time(config: Config) -> None:
    supervisor = Supervisor(config)
    try:
        supervisor.start("node-a")
        with pytest.raises(SupervisorError, match="node-a not SERVING after"):
            await supervisor.wait_serving(["node-a"], timeout_s=0.05)
    finally:
        supervisor.stop_all()


async def test_what_a_cancelled_caller_began_is_waited_for() -> None:
    begun, may_end, ended = asyncio.Event(), threading.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def work() -> None:
        loop.call_soon_threadsafe(begun.set)
        may_end.wait(10)
        ended.set()

    task = asyncio.create_task(to_the_end(work))
    await begun.wait()
    task.cancel()
    for _ in range(10):  # turns of the loop, more than a cancellation takes to arrive
        await asyncio.sleep(0)
    assert not task.done()
    may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended.is_set()
