"""Watching a disk: every sync, rename and removal below it and every write of SQLite's is a point where power may fail.

`watching` replaces `os.fsync`, `os.rename`, `os.unlink` and their like, and registers an SQLite VFS as the default, all
for the length of a block. Nothing is really synced: the disk is a model, and the tests are faster so.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any
from unittest import mock

import apsw

from tests.durability.disk import Disk

_JOURNALS = apsw.SQLITE_OPEN_WAL | apsw.SQLITE_OPEN_MAIN_JOURNAL | apsw.SQLITE_OPEN_SUPER_JOURNAL
_VFS = "power-loss"
_BASE = "unix"

Site = tuple[str, int]
"""File name and line of a call."""


class Watch:
    """What is told of each step, and which syncs are left out as if the source did not have them."""

    def __init__(self, disk: Disk, reached: Callable[[str], None] = lambda _: None) -> None:
        self.disk = disk
        self.reached = reached
        """Told before a sync, a removal and a write, and after a rename and a new directory."""
        self.skipped: frozenset[Site] = frozenset()
        """Calls in the source that sync nothing while they are on the stack."""
        self.skipped_syncs: frozenset[str] = frozenset()
        """SQLite's own syncs that do nothing: "database", "log", "journal"."""
        self.skips = 0

    def sync(self, path: Path) -> None:
        """One fsync by our own code."""
        self.reached(f"sync {kind(path)}")
        if self.skipped and any(site in self.skipped for site in _stack(sys._getframe(1))):
            self.skips += 1
        else:
            self.disk.synced(path)

    def sqlite_sync(self, path: Path, what: str, *, names: bool) -> None:
        """One fsync by SQLite; with `names` it makes the file's entry durable, too."""
        self.reached(f"sync {what}")
        if what in self.skipped_syncs:
            self.skips += 1
        else:
            self.disk.synced(path)
            if names:
                self.disk.synced(path.parent)


def kind(path: Path) -> str:
    """What a path is, without what differs from run to run."""
    if path.suffix == ".json" or path.suffixes[-2:] == [".json", ".tmp"]:
        return "record"
    return "file" if path.suffix in (".faiss", ".npy", ".bin") or ".faiss" in path.suffixes else "directory"


@contextmanager
def watching(watch: Watch) -> Iterator[Watch]:
    """See everything below the watch's disk while the block runs."""
    disk = watch.disk
    real_fsync = os.fsync

    def fsync(descriptor: int) -> None:
        path = _path_of(descriptor)
        if disk.holds(path):
            watch.sync(path)
        else:
            real_fsync(descriptor)

    def seen(verb: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any, *rest: Any, **options: Any) -> Any:
            where = _target(path, options)
            if where is None or not disk.holds(where):
                return real(path, *rest, **options)
            before = verb in ("unlink", "rmdir")
            if before:
                watch.reached("remove")
            result = real(path, *rest, **options)
            if not before:
                watch.reached(verb)
            return result

        return call

    vfs = _Vfs(watch)
    patched = {verb: seen(verb, getattr(os, verb)) for verb in ("rename", "replace", "unlink", "rmdir", "mkdir")}
    try:
        with mock.patch.multiple("os", fsync=fsync, **patched):  # type: ignore[call-overload] # of any callables
            yield watch
    finally:
        vfs.unregister()


def _target(path: Any, options: dict[str, Any]) -> Path | None:
    """The absolute path of a call; None when it cannot be told."""
    directory = options.get("dir_fd") or options.get("src_dir_fd")
    if isinstance(path, int):
        return None
    if directory is not None:
        return _path_of(directory) / os.fsdecode(path)
    return Path.cwd() / os.fsdecode(path)


def _path_of(descriptor: int) -> Path:
    return Path(f"/proc/self/fd/{descriptor}").readlink()


def _stack(frame: FrameType | None) -> Iterator[Site]:
    while frame is not None:
        yield frame.f_code.co_filename, frame.f_lineno
        frame = frame.f_back


class _Vfs(apsw.VFS):
    """The default VFS while it is registered; files outside the disk are passed on as they are."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch
        super().__init__(_VFS, _BASE, makedefault=True)

    def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> apsw.VFSFile:
        text = name.filename() if isinstance(name, apsw.URIFilename) else name
        if text is None or not self.watch.disk.holds(text):
            return apsw.VFSFile(_BASE, name, flags)
        return _File(self.watch, name, Path(text), flags)

    def xDelete(self, filename: str, syncdir: bool) -> None:
        path = Path(filename)
        if not self.watch.disk.holds(path):
            super().xDelete(filename, syncdir)
            return
        self.watch.reached("remove")
        super().xDelete(filename, False)
        if syncdir:
            self.watch.disk.synced(path.parent)


class _File(apsw.VFSFile):
    """A database, its log or a journal. As SQLite's own VFS does it, the first sync of a new journal or log makes its
    name durable."""

    def __init__(self, watch: Watch, name: str | apsw.URIFilename | None, path: Path, flags: list[int]) -> None:
        self._watch = watch
        self._path = path
        self._names = bool(flags[0] & apsw.SQLITE_OPEN_CREATE and flags[0] & _JOURNALS)
        self._what = "journal"
        if flags[0] & apsw.SQLITE_OPEN_WAL:
            self._what = "log"
        elif flags[0] & apsw.SQLITE_OPEN_MAIN_DB:
            self._what = "database"
        super().__init__(_BASE, name, flags)

    def xSync(self, flags: int) -> None:
        self._watch.sqlite_sync(self._path, self._what, names=self._names)
        self._names = False

    def xWrite(self, data: bytes, offset: int) -> None:
        self._watch.reached(f"write {self._what}")
        super().xWrite(data, offset)

    def xTruncate(self, size: int) -> None:
        self._watch.reached(f"write {self._what}")
        super().xTruncate(size)
