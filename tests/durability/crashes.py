"""Crash after crash: the power fails at each point in turn, and every image of the disk is opened and judged.

One run of the workload passes every point, mostly many times. At one passage of each the disk's image is taken, as if
the power had failed there; the run itself goes on, since what it does later is not in the image. The next run begins
from one of these images, so that recoveries are interrupted, too.
"""

from __future__ import annotations

import random
import shutil
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.durability.disk import Disk, Image, Loss
from tests.durability.judge import violations
from tests.durability.power import Watch, watching
from tests.durability.workload import REPLICA, Known, Workload

ROUNDS = 6
LOSSES = (Loss.ALL, Loss.TORN, Loss.CONTENTS, Loss.ENTRIES, Loss.NONE)
RUNS_MAX = 60
START_OVER = 2
"""Runs until the next one begins with an empty disk."""


@dataclass(frozen=True, slots=True)
class Crash:
    """An image of the disk and what was known when it was taken."""

    point: str
    loss: Loss
    image: Image
    known: Known


@dataclass(slots=True)
class Record:
    """What all crashes together came to."""

    crashes: int = 0
    hits: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    def table(self) -> str:
        width = max(map(len, self.hits), default=0)
        lines = [f"{point:<{width}}  {count:>5}" for point, count in sorted(self.hits.items())]
        return "\n".join([f"{'point':<{width}}   hits", *lines])


class Schedule:
    """At which passage of each point of a run the image is taken, and with which loss."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self._lock = threading.Lock()
        self._usual: Counter[str] = Counter()
        """How often a run has passed each point."""
        self._losses: dict[str, int] = {}
        self._passed: Counter[str] = Counter()
        self._chosen: dict[str, int] = {}

    def begin(self) -> None:
        """A new run."""
        for point, count in self._passed.items():
            self._usual[point] = max(count, self._usual[point] // 2)
        self._passed = Counter()
        self._chosen = {}

    def takes(self, point: str) -> Loss | None:
        """Called at each passage: the loss when it is the chosen one."""
        with self._lock:
            self._passed[point] += 1
            if point not in self._chosen:
                self._chosen[point] = self.random.randint(1, max(1, self._usual[point]))
            if self._passed[point] != self._chosen[point]:
                return None
            turn = self._losses.get(point, self.random.randrange(len(LOSSES)))
            self._losses[point] = turn + 1
            return LOSSES[turn % len(LOSSES)]


def crash_often(
    directory: Path, crashes: int, seed: int, hits_min: int = 1, say: Callable[[str], None] = print
) -> Record:
    """`crashes` of them, and more until each point was hit `hits_min` times. Images with problems are left in
    `directory`."""
    record = Record()
    schedule = Schedule(seed)
    random_ = random.Random(seed)
    since: Crash | None = None
    run = 0
    while run < RUNS_MAX and (record.crashes < crashes or min(record.hits.values()) < hits_min):
        root = directory / f"run-{run}"
        taken = one_run(root, seed + run, schedule, since)
        shutil.rmtree(root)
        random_.shuffle(taken)
        for number, crash in enumerate(taken):
            if record.crashes >= crashes and record.hits[crash.point] >= hits_min:
                continue
            image = directory / f"run-{run}-crash-{number}"
            crash.image.write_to(image)
            record.crashes += 1
            record.hits[crash.point] += 1
            wrong = violations(image, crash.known)
            record.problems += [f"{image}: {crash.point}, unsynced {crash.loss}: {each}" for each in wrong]
            if not wrong:
                shutil.rmtree(image)
        say(f"run {run}: {len(taken)} crashes, {len(record.problems)} problems so far")
        run += 1
        since = random_.choice(taken) if taken and run % START_OVER else None
    return record


def one_run(root: Path, seed: int, schedule: Schedule, since: Crash | None) -> list[Crash]:
    """One workload on one disk, from an image or from nothing."""
    if since is None:
        (root / REPLICA).mkdir(parents=True)
    else:
        since.image.write_to(root)
    disk = Disk(root)
    taken: list[Crash] = []

    def reached(what: str) -> None:
        point = f"{load.label}: {what}"
        loss = schedule.takes(point)
        if loss is not None:
            known: list[Known] = []
            image = disk.image(loss, schedule.random, lambda: known.append(load.known()))
            taken.append(Crash(point, loss, image, known[0]))

    schedule.begin()
    load = Workload(root, seed, reached)
    try:
        with watching(Watch(disk, reached)):
            load.open(None if since is None else since.known)
            load.run(ROUNDS)
            load.close()
    finally:
        disk.close()
    return taken
