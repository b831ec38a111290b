"""Short stories in which something becomes durable, each judged on a disk that lost all that was not synced.

Every story yields after each promise it was given; whoever drives it fails the power then and calls `judge` with a
directory that holds what is left.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

from services.runtime import topology_file
from services.runtime.config import Config
from tests.durability.disk import Disk, Loss
from tests.durability.judge import violations
from tests.durability.members import MemberStory
from tests.durability.mesh_records import mesh_config, mesh_problems, missing_ids
from tests.durability.power import Watch, watching
from tests.durability.restoring import RestoreStory, SnapshotStory
from tests.durability.workload import REPLICA, Known, Workload

IMAGES_MAX = 40
"""Power failures within which a missing sync must be noticed."""


class Story(Protocol):
    """Runs in `root`, which is empty and synced."""

    def run(self, root: Path) -> Iterator[None]:
        """Yields whenever something has been promised."""
        ...

    def judge(self, root: Path) -> list[str]:
        """What of all promises up to now is not kept by what is in `root`."""
        ...


class ReplicaStory:
    """Writes, a flush, a merge, checkpoints and codecs."""

    def __init__(self) -> None:
        self._load: Workload | None = None
        self._known: Known | None = None

    def run(self, root: Path) -> Iterator[None]:
        load = self._load = Workload(root, seed=1)
        load.open()
        steps: tuple[Callable[[], None], ...]
        steps = (lambda: load.write(1), load.take_codec, lambda: load.write(8), load.seal, load.checkpoint)
        for step in (*steps, lambda: load.write(1), *steps):
            step()
            self._known = load.known()
            yield
        load.close()

    def judge(self, root: Path) -> list[str]:
        assert self._known is not None, "something was promised"
        return violations(root, self._known, after=False)


class MeshStory:
    """A mesh is made, and one more collection."""

    def __init__(self) -> None:
        self._collections: dict[str, dict[str, int]] = {}
        self._ids: set[str] = set()

    def run(self, root: Path) -> Iterator[None]:
        for name in ("docs", "more"):
            self._collections[name] = {"shards": 2, "replicas": 2}
            topology = topology_file.bootstrap(self._config(root))
            self._ids = {voter.replica_id for node in ("n1", "n2") for _, _, voter in topology.replicas_of(node)}
            yield

    def judge(self, root: Path) -> list[str]:
        config = self._config(root)
        return [*mesh_problems(config), *missing_ids(config, self._ids)]

    def _config(self, root: Path) -> Config:
        return mesh_config(root, self._collections)


STORIES: tuple[type[Story], ...] = (ReplicaStory, MeshStory, MemberStory, SnapshotStory, RestoreStory)


def stories_for(file: str) -> list[type[Story]]:
    """All stories, that first which most likely needs what `file` makes durable."""
    likely: type[Story] = ReplicaStory
    if file.startswith("services/runtime"):
        likely = MeshStory
    elif "membership" in file:
        likely = MemberStory
    elif "snapshot" in file or "object_store" in file:
        likely = SnapshotStory
    return sorted(STORIES, key=lambda story: not issubclass(story, likely))


def first_violation(
    story: Story, directory: Path, skipped: frozenset[tuple[str, int]], sqlite: frozenset[str] = frozenset()
) -> tuple[list[str], int]:
    """(the first broken promises, how many syncs were left out), the power failing after each promise."""
    root = directory / "disk"
    (root / REPLICA).mkdir(parents=True)
    disk = Disk(root)
    watch = Watch(disk)
    watch.skipped, watch.skipped_syncs = skipped, sqlite
    try:
        with watching(watch):
            for number, _ in enumerate(story.run(root)):
                assert number < IMAGES_MAX, "the story is short"
                image = directory / f"image-{number}"
                disk.image(Loss.ALL, random.Random(1)).write_to(image)
                if wrong := story.judge(image):
                    return wrong, watch.skips
        return [], watch.skips
    finally:
        disk.close()
