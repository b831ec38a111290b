"""Who was started: a file per process, and the proof that the process of that id is still the same one."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

# The kernel's boot time, which creation times count from, moves when the clock is set.
_CREATED_TOLERANCE_S = 2.0


@dataclass(frozen=True, slots=True)
class ProcessRecord:
    """A process that this mesh's supervisor started."""

    name: str
    pid: int
    created_s: float
    """Unix time of its creation, so that a later process under the same id is not mistaken for it."""
    module: str
    log: str

    def process(self) -> psutil.Process | None:
        """The running process, None when it has ended (also when another took its id)."""
        try:
            process = psutil.Process(self.pid)
            if abs(process.create_time() - self.created_s) > _CREATED_TOLERANCE_S:
                return None
            if ended(process):
                return None
            # It is empty for a moment while the kernel loads the program.
            command = process.cmdline()
            if command and self.module not in command:
                return None
        except psutil.NoSuchProcess:
            return None
        return process

    def write(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        partial = directory / f"{self.name}.tmp"
        partial.write_text(json.dumps(asdict(self)) + "\n", encoding="utf-8")
        partial.replace(directory / f"{self.name}.json")

    def remove(self, directory: Path) -> None:
        (directory / f"{self.name}.json").unlink(missing_ok=True)


def ended(process: psutil.Process) -> bool:
    """Whether a process is gone, or a zombie whose exit code nobody has asked for.

    The first thread may be a zombie while others still hold ports and files; it has ended when it is the last.
    """
    try:
        if not process.is_running():
            return True
        return bool(process.status() == psutil.STATUS_ZOMBIE and process.num_threads() <= 1)
    except psutil.NoSuchProcess:
        return True


def read_record(directory: Path, name: str) -> ProcessRecord | None:
    """The record of that name, None when there is none or it cannot be read."""
    try:
        return ProcessRecord(**json.loads((directory / f"{name}.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
