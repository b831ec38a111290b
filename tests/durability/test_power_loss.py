"""The power fails while a replica writes, seals, merges, checkpoints, purges and stores codecs."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.durability.crashes import crash_often
from tests.durability.disk import Disk, Loss

CRASHES = 40


def test_nothing_acknowledged_is_lost(tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"python -m tests.durability --crashes {CRASHES} --seed {seed}")
    record = crash_often(tmp_path, CRASHES, seed, hits_min=0)
    print(record.table())
    assert not record.problems, "\n".join(record.problems)
    assert len(record.hits) >= CRASHES // 2, "the crashes are spread over the points"


@pytest.mark.parametrize("loss", Loss)
def test_what_a_disk_remembers(tmp_path: Path, loss: Loss) -> None:
    (tmp_path / "old").write_bytes(b"synced")
    disk = Disk(tmp_path)
    (tmp_path / "old").write_bytes(b"change")
    (tmp_path / "new").write_bytes(b"content")
    disk.synced(tmp_path / "new")
    (tmp_path / "new").rename(tmp_path / "renamed")
    (tmp_path / "empty").write_bytes(b"never synced")
    found = disk.image(loss, random.Random(1)).entries
    disk.close()
    contents = {"old": b"change", "renamed": b"content", "empty": b"never synced"}
    expected = {
        Loss.ALL: {"old": b"synced"},
        Loss.CONTENTS: {"old": b"synced", "renamed": b"content", "empty": b""},
        Loss.ENTRIES: {"old": b"change"},
        Loss.NONE: contents,
    }
    if loss in expected:
        assert found == expected[loss]
    else:
        assert found["old"] in (b"synced", b"change")
        assert found.keys() <= contents.keys()


def test_a_removed_file_comes_back_until_its_directory_is_synced(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    disk = Disk(tmp_path)
    (tmp_path / "file").unlink()
    (tmp_path / "other").write_bytes(b"of a new inode")
    assert disk.image(Loss.ALL, random.Random(1)).entries == {"file": b"content"}
    disk.synced(tmp_path)
    assert disk.image(Loss.ALL, random.Random(1)).entries == {"other": b""}
    disk.close()
