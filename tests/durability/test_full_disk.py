"""A disk that is really full, and one whose fsync fails: refuse and go on, or end the process."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.quorum.status import ReplicaStatus
from services.shard import files
from services.shard.upkeep import Upkeep
from tests.durability.judge import violations
from tests.durability.workload import EPOCH, REPLICA, WAIT_S, Workload
from tests.unit.shard_rows import batch

DISK_BYTES = 4 * 1024 * 1024
BALLAST = "ballast"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system of its own."""
    root = tmp_path / "disk"
    root.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(root)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted: {mounted.stderr.decode().strip()}")
    (root / REPLICA).mkdir()
    try:
        yield root
    finally:
        subprocess.run(["umount", "-l", str(root)], check=True)


def fill(root: Path) -> None:
    """Until not a byte is free."""
    with (root / BALLAST).open("wb", buffering=0) as file:
        for size in (65_536, 4_096, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(b"x" * size)


def test_a_full_disk_stops_writes_and_nothing_else(disk: Path) -> None:
    load = Workload(disk, seed=1)
    load.open()
    load.write(8)
    before = load.engine.view
    fill(disk)
    statuses = []
    for number in range(200):  # what the log has room for is still taken
        future = load.engine.write(batch(10_000 + number, [(f"more{number}", 200)]), EPOCH)
        assert future is not None
        reply = future.result(WAIT_S)
        statuses.append(reply.status)
        if reply.status is not ReplicaStatus.OK:
            assert reply.status is ReplicaStatus.READ_ONLY
            assert "full" in load.engine.read_only
            break
    assert statuses[-1] is ReplicaStatus.READ_ONLY
    known = load.known()
    if len(statuses) == 1:
        assert load.engine.view.applied == before.applied
    assert load.fatal == []
    upkeep = Upkeep(load.engine)
    upkeep.step(1)
    assert load.engine.read_only, "there is still no space"
    (disk / BALLAST).unlink()
    upkeep.step(2)
    assert not load.engine.read_only
    load.write(2)
    load.close()
    assert known.acknowledged <= load.known().acknowledged
    if len(statuses) == 1:
        assert violations(disk, load.known()) == []


def test_a_segment_that_finds_no_space_is_built_later(disk: Path) -> None:
    load = Workload(disk, seed=2)
    load.open()
    load.write(14)
    fill(disk)
    rows = load.engine.view.rows_live
    with pytest.raises(OSError, match="No space left"):
        load.seal()
    assert not load.engine.view.parts
    assert load.engine.view.rows_live == rows
    assert not list(load.engine.segments_dir.iterdir())
    (disk / BALLAST).unlink()
    load.seal()
    assert load.engine.view.parts
    load.close()
    assert load.fatal == []
    assert violations(disk, load.known()) == []


def test_a_failed_fsync_ends_the_process_and_is_not_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def failing(descriptor: int) -> None:
        calls.append(descriptor)
        raise OSError(errno.EIO, "Input/output error")

    class ExitedError(BaseException):
        pass

    def exited(code: int) -> None:
        raise ExitedError(code)

    monkeypatch.setattr(os, "fsync", failing)
    monkeypatch.setattr(os, "_exit", exited)
    (tmp_path / "building").mkdir()
    (tmp_path / "building" / "file").write_bytes(b"content")
    with pytest.raises(ExitedError, match=str(files.EXIT_DISK)):
        files.publish_directory(tmp_path / "building", tmp_path / "final")
    assert len(calls) == 1
    assert not (tmp_path / "final").exists()
    with pytest.raises(ExitedError):
        files.replace_file(tmp_path / "record", b"content")
    assert len(calls) == 2
    assert not (tmp_path / "record").exists()
