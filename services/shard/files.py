"""Files of the engine outside SQLite: written, made durable, renamed and removed here and nowhere else in the shard.

Every name a function promises survives a power loss when it returns. A write that finds no space raises OSError and
may be tried again. A failed fsync may not: the kernel forgets the pages it could not write, so a second fsync would
succeed without them. It ends the process, which then believes only what it reads back.

Removal promises nothing: what a crash brings back is a stray, and whoever opens a directory removes its strays.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import NoReturn

from observability.logs import logger

EXIT_DISK = 74
"""Exit code after a failed read, write or fsync (EX_IOERR): the process must reopen its files."""
_LOG = logger("shard")


def exit_process(reason: str) -> NoReturn:
    """End the process at once: after a failed fsync nothing in memory may be trusted."""
    _LOG.error("disk failure; the process exits and must reopen its files", reason=reason)
    os._exit(EXIT_DISK)


def write_file(path: Path, content: bytes) -> None:
    """Write and sync one file; its name is durable once its directory is. Raises OSError."""
    path.write_bytes(content)
    sync_file(path)


def sync_file(path: Path) -> None:
    """Make a file's content durable, whoever wrote it and by whichever means. Raises OSError when it is missing."""
    _sync(path, os.O_RDONLY)


def sync_directory(path: Path) -> None:
    """Make the directory's entries durable. Raises OSError when it is missing."""
    _sync(path, os.O_RDONLY | os.O_DIRECTORY)


def make_directory(path: Path) -> None:
    """Create a directory and its missing parents, durably; one that is there keeps what it holds. Raises OSError."""
    if not path.parent.is_dir():
        make_directory(path.parent)
    path.mkdir(exist_ok=True)
    sync_directory(path.parent)


def replace_file(path: Path, content: bytes) -> None:
    """Write a file so that a crash leaves the old or the new content, never a part. Raises OSError, nothing changed."""
    aside = path.with_name(f".{path.name}.tmp")
    try:
        write_file(aside, content)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    sync_directory(path.parent)


def publish_directory(building: Path, final: Path) -> None:
    """Give a directory of finished files its name, all or nothing: no name before its content.

    Raises OSError; then `final` is not there.
    """
    for path in sorted(building.iterdir()):
        sync_file(path)
    sync_directory(building)
    building.rename(final)
    sync_directory(final.parent)


def remove_tree(path: Path) -> None:
    """Remove a file or a directory with all it holds, as far as it is there and can be removed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    except OSError as error:
        exit_process(f"fsync of {path} failed: {error}")
    finally:
        os.close(descriptor)
