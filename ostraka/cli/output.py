"""How commands talk: tables for people on stdout, JSON for programs on stdout, errors on stderr, exit codes."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import json
import sys
from collections.abc import Callable, Coroutine, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from ostraka.cli.exit_codes import ExitCode, exit_code_of
from ostraka.cli.member_change import ChangeError
from ostraka.cli.supervisor import SupervisorError
from ostraka.errors import OstrakaError
from ostraka.results import Version
from services.runtime.config import ConfigError
from services.shard.object_store import ObjectStoreError
from services.shard.snapshot_format import SnapshotError

# Files and pipes have no width; 80 columns would fold every id.
PIPE_COLUMNS = 160
CONSOLE = Console(highlight=False, width=None if sys.stdout.isatty() else PIPE_COLUMNS)
ERRORS = Console(stderr=True, highlight=False)

# Whatever has a message for the user; anything else is a defect and shows where it is.
_REPORTED = (OstrakaError, ConfigError, SupervisorError, ObjectStoreError, SnapshotError, ChangeError)

P = ParamSpec("P")
T = TypeVar("T")


def command(body: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """A command from a coroutine: runs it, and turns what it raises into one message and an exit code."""

    @functools.wraps(body)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            asyncio.run(body(*args, **kwargs))
        except _REPORTED as error:
            report_error(error, as_json=bool(kwargs.get("as_json", False)))
            raise typer.Exit(exit_code_of(error)) from None
        except (KeyboardInterrupt, asyncio.CancelledError):
            ERRORS.print("interrupted")
            raise typer.Exit(ExitCode.INTERRUPTED) from None

    return run


def report_error(error: Exception, *, as_json: bool) -> None:
    """One message on stderr."""
    field = getattr(error, "field", "")
    if as_json:
        content = {"error": {"type": type(error).__name__, "message": str(error), "field": field}}
        sys.stderr.write(json.dumps(content) + "\n")
        return
    ERRORS.print(f"{type(error).__name__}: {error}", markup=False, style="red")
    if field and field not in str(error):
        ERRORS.print(f"  field: {field}", markup=False)


def print_json(value: object) -> None:
    """One JSON document."""
    sys.stdout.write(json.dumps(value, default=to_json, indent=2, ensure_ascii=False) + "\n")


def print_json_line(value: object) -> None:
    """One line of a stream of JSON documents, at once."""
    sys.stdout.write(json.dumps(value, default=to_json, ensure_ascii=False) + "\n")
    sys.stdout.flush()


def to_json(value: object) -> object:
    """What `json` cannot express: frozen values become objects, digests hex, enums their names."""
    if isinstance(value, Version):
        return str(value)  # as numbers its halves would not survive a reader with 53-bit integers
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: getattr(value, item.name) for item in dataclasses.fields(value)}
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A table; numbers to the right."""
    table = Table(title=title, title_justify="left", header_style="bold")
    for index, column in enumerate(columns):
        numeric = bool(rows) and all(isinstance(row[index], (int, float)) for row in rows)
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(_cell(value) for value in row))
    CONSOLE.print(table)


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else ""
    if isinstance(value, float):
        return f"{value:.4f}"
    return str(value).replace("[", r"\[")


def print_weak(weak: bool) -> None:
    """A promise that was given up by configuration is never passed over."""
    if weak:
        CONSOLE.print("WEAK: R + W <= N in this collection, so QUORUM may miss acknowledged writes", style="yellow")
