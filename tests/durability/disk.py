"""What a disk would hold if the power failed now.

The real file system has everything that was written. `Disk` remembers, for every file and directory below its root,
what it held when it was last synced: a file's content, a directory's entries. Nothing else survives for certain, so an
image of the disk is made from what was synced and, depending on the `Loss`, from some of what was not. Writes through
a memory map need no care: the content is read from the file at the moment of its sync.

Inodes are held open, so that a removed file which no synced directory has forgotten yet can come back.
"""

from __future__ import annotations

import os
import random
import stat
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

SECTOR = 512
LOST_AT_ONCE = ("-shm",)
"""Memory shared between SQLite's connections; made anew by the first one that opens the database."""


class Loss(StrEnum):
    """What becomes of that which was written but not synced."""

    ALL = "all"
    """Lost, contents and entries."""
    CONTENTS = "contents"
    """Names survive, contents do not: files that were renamed into place and are empty."""
    ENTRIES = "entries"
    """Contents survive, names do not."""
    TORN = "torn"
    """Any sector and any entry may or may not have reached the disk."""
    NONE = "none"
    """Nothing is lost: the process died, not the machine."""


@dataclass(slots=True)
class _Inode:
    descriptor: int
    is_directory: bool
    content: bytes | None = None
    """Of a file when it was last synced."""
    entries: dict[str, int] = field(default_factory=dict)
    """Of a directory when it was last synced: name to inode number."""


@dataclass(frozen=True, slots=True)
class Image:
    """Files and directories by relative path; None stands for a directory. Parents come first."""

    entries: dict[str, bytes | None]

    def write_to(self, directory: Path) -> None:
        """Make a new directory hold exactly this."""
        directory.mkdir(parents=True)
        for relative, content in self.entries.items():
            if content is None:
                (directory / relative).mkdir()
            else:
                (directory / relative).write_bytes(content)


class Disk:
    """Everything below `root`. Thread-safe: no sync comes between the parts of an image."""

    def __init__(self, root: Path) -> None:
        """What is there already counts as synced."""
        self.root = root.resolve()
        self._lock = threading.RLock()
        self._inodes: dict[int, _Inode] = {}
        self._root = self._pin(os.open(self.root, os.O_RDONLY))
        for directory, names, files in os.walk(self.root):
            for name in (*names, *files):
                self.synced(Path(directory, name))
        self.synced(self.root)

    def holds(self, path: Path | str) -> bool:
        return Path(path).is_relative_to(self.root)

    def synced(self, path: Path) -> None:
        """The content of a file, or the entries of a directory, are durable from now on."""
        with self._lock:
            number = self._pin(os.open(path, os.O_RDONLY))
            inode = self._inodes[number]
            if inode.is_directory:
                inode.entries = self._entries_now(inode)
            else:
                inode.content = self._content_now(inode)

    def image(self, loss: Loss, random_: random.Random, before: Callable[[], None] = lambda: None) -> Image:
        """What is left; `before` runs in the same instant, before anything is read."""
        with self._lock:
            before()
            found: dict[str, bytes | None] = {}
            self._collect(self._root, "", _Chooser(loss, random_), found)
            return Image(found)

    def close(self) -> None:
        with self._lock:
            for inode in self._inodes.values():
                os.close(inode.descriptor)
            self._inodes.clear()

    def _collect(self, number: int, prefix: str, chooser: _Chooser, found: dict[str, bytes | None]) -> None:
        inode = self._inodes[number]
        for name, child in sorted(chooser.entries(inode.entries, self._entries_now(inode)).items()):
            if name.endswith(LOST_AT_ONCE):
                continue
            relative = f"{prefix}{name}"
            if self._inodes[child].is_directory:
                found[relative] = None
                self._collect(child, f"{relative}/", chooser, found)
            else:
                durable = self._inodes[child].content
                found[relative] = chooser.content(durable or b"", self._content_now(self._inodes[child]))

    def _pin(self, descriptor: int) -> int:
        status = os.fstat(descriptor)
        if status.st_ino in self._inodes:
            os.close(descriptor)
        else:
            self._inodes[status.st_ino] = _Inode(descriptor, stat.S_ISDIR(status.st_mode))
        return status.st_ino

    def _entries_now(self, inode: _Inode) -> dict[str, int]:
        found = {}
        for name in _names(inode.descriptor):
            try:
                found[name] = self._pin(os.open(name, os.O_RDONLY, dir_fd=inode.descriptor))
            except FileNotFoundError:  # removed since it was listed
                continue
        return found

    @staticmethod
    def _content_now(inode: _Inode) -> bytes:
        pieces = []
        offset = 0
        while piece := os.pread(inode.descriptor, 1 << 20, offset):
            pieces.append(piece)
            offset += len(piece)
        return b"".join(pieces)


def _names(descriptor: int) -> Iterable[str]:
    try:
        return os.listdir(descriptor)
    except FileNotFoundError:  # the directory itself was removed
        return ()


class _Chooser:
    """Chooses, for one image, between what was synced and what is there."""

    def __init__(self, loss: Loss, random_: random.Random) -> None:
        self._loss = loss
        self._random = random_

    def entries(self, durable: dict[str, int], now: dict[str, int]) -> dict[str, int]:
        if self._loss in (Loss.ALL, Loss.ENTRIES):
            return durable
        if self._loss in (Loss.CONTENTS, Loss.NONE):
            return now
        chosen = {}
        for name in sorted(durable.keys() | now.keys()):
            either = self._random.choice((durable, now)) if durable.get(name) != now.get(name) else durable
            if name in either:
                chosen[name] = either[name]
        return chosen

    def content(self, durable: bytes, now: bytes) -> bytes:
        if self._loss in (Loss.ALL, Loss.CONTENTS) or durable == now:
            return durable
        if self._loss in (Loss.ENTRIES, Loss.NONE):
            return now
        length = self._random.choice((len(durable), len(now), self._random.randint(0, max(len(durable), len(now)))))
        length = max(length, min(len(durable), len(now)))
        share = self._random.choice((0.0, 0.5, 0.9, 1.0))
        parts = []
        for at in range(0, length, SECTOR):
            source = now if self._random.random() < share else durable
            parts.append(source[at : at + SECTOR].ljust(min(SECTOR, length - at), b"\0"))
        return b"".join(parts)
