"""Every call in the source that makes something durable, found by reading it, so that a new one is not overlooked."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCES = (
    *sorted((ROOT / "services/shard").glob("*.py")),
    ROOT / "services/runtime/atomic_file.py",
    ROOT / "services/runtime/topology_file.py",
)
SYNCING = frozenset(
    {
        "fsync",
        "fdatasync",
        "sync",
        "_sync",
        "sync_file",
        "sync_directory",
        "write_file",
        "write_atomically",
        "replace_file",
        "make_directory",
        "publish_directory",
        "publish",
        "make_replica",
    }
)
"""Names of functions whose call makes something durable, the system's and ours."""
PRAGMA = "PRAGMA synchronous="


@dataclass(frozen=True, slots=True)
class SyncSite:
    """One call: its file below the repository, the function it is in, what is called, and its lines."""

    file: str
    function: str
    called: str
    number: int
    """Among the calls of the same name in the same function."""
    first: int
    last: int

    def __str__(self) -> str:
        return f"{self.file} {self.function}: {self.called}" + (f" ({self.number})" if self.number else "")

    @property
    def lines(self) -> frozenset[tuple[str, int]]:
        """(absolute file name, line) as frames have them."""
        return frozenset((str(ROOT / self.file), line) for line in range(self.first, self.last + 1))


def sync_sites() -> list[SyncSite]:
    """All of them, in the order of the source."""
    return [site for path in SOURCES for site in _of(path)]


def pragmas() -> list[tuple[str, str]]:
    """(file, statement) of each PRAGMA that says how far SQLite syncs."""
    return [
        (str(path.relative_to(ROOT)), node.value)
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith(PRAGMA)
    ]


def _of(path: Path) -> Iterator[SyncSite]:
    seen: dict[tuple[str, str], int] = {}
    for function, call in _calls(ast.parse(path.read_text(encoding="utf-8")), "module"):
        name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        if name in SYNCING:
            number = seen.get((function, name), 0)
            seen[function, name] = number + 1
            file = str(path.relative_to(ROOT))
            yield SyncSite(file, function, name, number, call.lineno, call.end_lineno or call.lineno)


def _calls(node: ast.AST, function: str) -> Iterator[tuple[str, ast.Call]]:
    for child in ast.iter_child_nodes(node):
        inside = child.name if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) else function
        if isinstance(child, ast.Call):
            yield function, child
        yield from _calls(child, inside)
