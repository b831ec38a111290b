"""The file that finished spans are appended to: one line per batch, rotated by size."""

from __future__ import annotations

import os
from pathlib import Path


class SpanFile:
    """`<stem>.jsonl` in a directory; at `bytes_max` it becomes `<stem>.1.jsonl`, whose predecessor is replaced."""

    def __init__(self, directory: Path, stem: str, bytes_max: int) -> None:
        """Raises OSError when the directory cannot be made or written."""
        directory.mkdir(parents=True, exist_ok=True)
        self.path = directory / f"{stem}.jsonl"
        self.predecessor = directory / f"{stem}.1.jsonl"
        self._bytes_max = bytes_max
        self._end_cut_line()

    def append(self, line: str) -> None:
        """Write one line in one write. Raises OSError, for example when the disk is full."""
        data = line.encode() + b"\n"
        if self._size() and self._size() + len(data) > self._bytes_max:
            self.path.replace(self.predecessor)
        with self.path.open("ab", buffering=0) as file:
            start = file.tell()
            written = file.write(data)
            if written != len(data):
                os.ftruncate(file.fileno(), start)
                raise OSError(f"{self.path}: only {written} of {len(data)} bytes were written")

    def _size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    def _end_cut_line(self) -> None:
        """A process killed while writing leaves half a line; the next one must begin on its own."""
        if not self._size():
            return
        with self.path.open("rb+") as file:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
