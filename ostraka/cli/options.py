"""Options that several commands share."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from ostraka.results import Consistency

MeshFileOption: TypeAlias = Annotated[
    Path | None,
    typer.Option("--mesh-file", "-m", help="The mesh file; OSTRAKA_MESH_FILE or ./mesh.toml when not given."),
]
JsonOption: TypeAlias = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
CollectionOption: TypeAlias = Annotated[str, typer.Option("--collection", "-c", help="Which collection.")]
TimeoutOption: TypeAlias = Annotated[float, typer.Option("--timeout", min=0.001, help="Deadline in seconds.")]


class Level(StrEnum):
    """How fresh an answer must be."""

    ONE = "one"
    SESSION = "session"
    QUORUM = "quorum"

    @property
    def consistency(self) -> Consistency:
        return Consistency[self.name]


ConsistencyOption: TypeAlias = Annotated[
    Level,
    typer.Option(
        "--consistency", help="one: any replica; session: what this call wrote; quorum: every acknowledged write."
    ),
]
