"""`ask`, `search`, `get`: reading."""

from __future__ import annotations

from typing import Annotated

import typer

from ostraka.answers import Answer, AskEvent, Delta, Retrieved
from ostraka.cli.exit_codes import ExitCode
from ostraka.cli.options import (
    CollectionOption,
    ConsistencyOption,
    DenseWeightOption,
    DepthOption,
    JsonOption,
    Level,
    LexicalWeightOption,
    MeshFileOption,
    Mode,
    ModeOption,
    RankConstantOption,
    StalenessOption,
    TimeoutOption,
    WhereOption,
    fusion_of,
)
from ostraka.cli.output import CONSOLE, command, print_json, print_json_line, print_table, print_weak
from ostraka.cli.session import open_client
from ostraka.results import Consistency, Hit, Provenance, ShardCoverage

_PREVIEW_CHARS = 160
_VERSION_CHARS = 20
"""The clock and the beginning of the writer's id; --json has all of it."""


@command
async def ask(
    question: Annotated[str, typer.Argument(help="The question, in words.")],
    k: Annotated[int, typer.Option("-k", min=1, help="Passages to retrieve.")] = 8,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 256,
    mode: ModeOption = Mode.DENSE,
    dense_weight: DenseWeightOption = None,
    lexical_weight: LexicalWeightOption = None,
    rank_constant: RankConstantOption = None,
    depth: DepthOption = None,
    where: WhereOption = None,
    consistency: ConsistencyOption = Level.QUORUM,
    max_staleness_ms: StalenessOption = 0,
    partial: Annotated[bool, typer.Option("--partial", help="Answer although a shard is unavailable.")] = False,
    collection: CollectionOption = "docs",
    timeout_s: TimeoutOption = 60.0,
    mesh_file: MeshFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ask a question; the answer streams in with citations, then the provenance of every passage.

    With --json, one event per line: retrieved, delta, answer.
    """
    async with open_client(mesh_file, collection) as client:
        events = client.ask(
            question,
            k=k,
            max_tokens=max_tokens,
            consistency=consistency.consistency,
            max_staleness_ms=max_staleness_ms,
            allow_partial=partial,
            mode=mode.search_mode,
            fusion=fusion_of(dense_weight, lexical_weight, rank_constant, depth),
            where=where,
            timeout_s=timeout_s,
        )
        async for event in events:
            if as_json:
                print_json_line({type(event).__name__.lower(): event})
            else:
                print_event(event)


def print_event(event: AskEvent) -> None:
    """A piece of the answer as it arrives; at the end its table of provenance."""
    if isinstance(event, Delta):
        CONSOLE.print(event.text, end="", markup=False, soft_wrap=True)
    elif isinstance(event, Answer):
        CONSOLE.print()
        print_provenance(event.provenance)
        _print_coverage(event.coverage)
        CONSOLE.print(f"model {event.model}, finished: {event.finish_reason}; trace {event.trace_id}", markup=False)
    else:
        assert isinstance(event, Retrieved)


def print_provenance(provenance: tuple[Provenance, ...]) -> None:
    """Where each passage came from and what became of it."""
    columns = (
        "passage id", "source", "version", "shard", "replica", "index epoch", "score", "near", "words", "rank",
        "in prompt", "cited",
    )  # fmt: skip
    rows = [
        (
            p.passage_id,
            _short(p.source),
            f"{p.version.hlc:x}.{p.version.source:x}"[:_VERSION_CHARS],
            p.shard,
            p.replica[:8],
            p.index_epoch,
            p.score,
            _rank(p.dense_rank),
            _rank(p.lexical_rank),
            p.rank,
            p.in_prompt,
            p.cited,
        )
        for p in provenance
    ]
    print_table("Provenance", columns, rows)


@command
async def search(
    query: Annotated[str, typer.Argument(help="What to look for, in words.")],
    k: Annotated[int, typer.Option("-k", min=1, help="Hits.")] = 10,
    exact: Annotated[bool, typer.Option("--exact", help="Exhaustive instead of approximate.")] = False,
    mode: ModeOption = Mode.DENSE,
    dense_weight: DenseWeightOption = None,
    lexical_weight: LexicalWeightOption = None,
    rank_constant: RankConstantOption = None,
    depth: DepthOption = None,
    where: WhereOption = None,
    consistency: ConsistencyOption = Level.QUORUM,
    max_staleness_ms: StalenessOption = 0,
    partial: Annotated[bool, typer.Option("--partial", help="Answer although a shard is unavailable.")] = False,
    collection: CollectionOption = "docs",
    timeout_s: TimeoutOption = 10.0,
    mesh_file: MeshFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find passages: nearest in meaning to a query, best by its words, or both.

    "near" and "words" are a passage's ranks in the two lists; empty: not in that list.
    """
    async with open_client(mesh_file, collection) as client:
        result = await client.search(
            query,
            k=k,
            exact=exact,
            consistency=consistency.consistency,
            max_staleness_ms=max_staleness_ms,
            allow_partial=partial,
            mode=mode.search_mode,
            fusion=fusion_of(dense_weight, lexical_weight, rank_constant, depth),
            where=where,
            timeout_s=timeout_s,
        )
    if as_json:
        print_json(result)
        return
    print_table(
        f"{len(result)} hits, {result.mode.name.lower()}, trace {result.trace_id}",
        ("rank", "score", "near", "words", "passage id", "title", "text"),
        [_hit_row(hit) for hit in result],
    )
    _print_coverage(result.coverage)
    print_weak(result.weak)


@command
async def get(
    ids: Annotated[list[str], typer.Argument(help="Document ids, or passage ids such as guide.md#3.")],
    passages: Annotated[bool, typer.Option("--passages", help="The ids are passage ids.")] = False,
    consistency: ConsistencyOption = Level.QUORUM,
    max_staleness_ms: StalenessOption = 0,
    collection: CollectionOption = "docs",
    timeout_s: TimeoutOption = 10.0,
    mesh_file: MeshFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print documents as the mesh holds them. Exit code 1 when one does not exist."""
    async with open_client(mesh_file, collection) as client:
        result = await client.get(
            [] if passages else ids,
            passage_ids=ids if passages else [],
            consistency=consistency.consistency,
            max_staleness_ms=max_staleness_ms,
            timeout_s=timeout_s,
        )
    if as_json:
        print_json(result)
    else:
        for passage in result.passages:
            CONSOLE.print(
                f"{passage.passage_id}  {passage.title}  version {passage.version}", style="bold", markup=False
            )
            CONSOLE.print(passage.text, markup=False)
        for missing in result.missing:
            CONSOLE.print(f"{missing}: does not exist", style="yellow", markup=False)
        _print_coverage(result.coverage)
        print_weak(result.weak)
    if result.missing:
        raise typer.Exit(ExitCode.FAILED)


def _short(source: str) -> str:
    """The last part of a URI: the whole is in --json and would fill the terminal."""
    return source.rstrip("/").rpartition("/")[2]


def _hit_row(hit: Hit) -> tuple[object, ...]:
    text = " ".join(hit.passage.text.split())
    preview = text if len(text) <= _PREVIEW_CHARS else text[: _PREVIEW_CHARS - 1] + "…"
    p = hit.provenance
    return p.rank, hit.score, _rank(p.dense_rank), _rank(p.lexical_rank), p.passage_id, hit.passage.title, preview


def _rank(rank: int) -> object:
    """A rank of 0 means: not in that list."""
    return rank or ""


def _print_coverage(coverage: tuple[ShardCoverage, ...]) -> None:
    """Partial coverage is never silent."""
    for shard in coverage:
        if not shard.complete:
            CONSOLE.print(f"shard {shard.shard} took no part: {shard.reason}", style="yellow", markup=False)
        elif shard.level is Consistency.BOUNDED:
            CONSOLE.print(f"shard {shard.shard}: read at {shard.node}, {shard.staleness_ms} ms old", markup=False)
