"""Options that several commands share."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from ostraka.results import Consistency, WriteLevel
from ostraka.search_modes import Fusion, SearchMode

MeshFileOption: TypeAlias = Annotated[
    Path | None,
    typer.Option("--mesh-file", "-m", help="The mesh file; OSTRAKA_MESH_FILE or ./mesh.toml when not given."),
]
JsonOption: TypeAlias = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
CollectionOption: TypeAlias = Annotated[str, typer.Option("--collection", "-c", help="Which collection.")]
WhereOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--where",
        "-w",
        help="Only what meets this condition, such as: year >= 2020 and lang in ('en', 'de') and not draft = true",
    ),
]
TimeoutOption: TypeAlias = Annotated[float, typer.Option("--timeout", min=0.001, help="Deadline in seconds.")]


class Level(StrEnum):
    """How fresh an answer must be."""

    ONE = "one"
    SESSION = "session"
    BOUNDED = "bounded"
    QUORUM = "quorum"
    LINEARIZABLE = "linearizable"

    @property
    def consistency(self) -> Consistency:
        return Consistency[self.name]


ConsistencyOption: TypeAlias = Annotated[
    Level,
    typer.Option(
        "--consistency",
        help="one: any replica; session: what this call wrote; bounded: no older than --max-staleness-ms; "
        "quorum: every acknowledged write; linearizable (get only): nor does a later read miss what this one saw.",
    ),
]
StalenessOption: TypeAlias = Annotated[
    int, typer.Option("--max-staleness-ms", min=0, help="bounded: how old an answer may be, in milliseconds.")
]


class Acknowledged(StrEnum):
    """When a write is acknowledged."""

    ONE = "one"
    QUORUM = "quorum"
    ALL = "all"

    @property
    def level(self) -> WriteLevel:
        return WriteLevel[self.name]


WriteLevelOption: TypeAlias = Annotated[
    Acknowledged,
    typer.Option(
        "--level", help="Acknowledge when it is durable on one voter, on a write quorum, or on all voters of its shard."
    ),
]
KeyOption: TypeAlias = Annotated[
    str,
    typer.Option(
        "--idempotency-key", help="Names this write: repeated with the same key it has no further effect of its own."
    ),
]


class Mode(StrEnum):
    """How passages are found and ordered."""

    DENSE = "dense"
    LEXICAL = "lexical"
    HYBRID = "hybrid"
    TWO_STAGE = "two-stage"

    @property
    def search_mode(self) -> SearchMode:
        return SearchMode[self.name]


ModeOption: TypeAlias = Annotated[
    Mode,
    typer.Option(
        help="dense: by meaning; lexical: by words; hybrid: both, fused; two-stage: the nearest, ordered by words."
    ),
]
DenseWeightOption: TypeAlias = Annotated[
    float | None, typer.Option("--dense-weight", help="hybrid: how much nearness counts; 1 when not given.")
]
LexicalWeightOption: TypeAlias = Annotated[
    float | None, typer.Option("--lexical-weight", help="hybrid: how much words count; 1 when not given.")
]
RankConstantOption: TypeAlias = Annotated[
    int | None, typer.Option("--rank-constant", help="hybrid: smaller favours the first ranks; 10 when not given.")
]
DepthOption: TypeAlias = Annotated[
    int | None, typer.Option("--depth", help="hybrid, two-stage: candidates from each list; 100 when not given.")
]


def fusion_of(
    dense_weight: float | None, lexical_weight: float | None, rank_constant: int | None, depth: int | None
) -> Fusion | None:
    """What the options say; None when they say nothing."""
    fusion = Fusion(dense_weight=dense_weight, lexical_weight=lexical_weight, rank_constant=rank_constant, depth=depth)
    return None if fusion == Fusion() else fusion
