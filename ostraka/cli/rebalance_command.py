"""`rebalance --plan`: which buckets would move to which shard, and why. It moves nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray

from ostraka.cli.bucket_loads import ShardLook, loads_of, look
from ostraka.cli.options import JsonOption, MeshFileOption, TimeoutOption
from ostraka.cli.output import CONSOLE, command, print_json, print_table
from services.placement.load import CellLoads, Weights, shard_loads
from services.placement.moves import Move, Plan, plan
from services.runtime import topology_file
from services.runtime.config import ConfigError, load


@dataclass(frozen=True, slots=True)
class ShardLoad:
    """One shard as it is, and as the plan would leave it; loads as shares of the collection's."""

    shard: int
    rows: int
    rows_planned: int
    searches_per_s: float
    load: float
    load_planned: float
    replicas_asked: int
    silent: Sequence[str]


@dataclass(frozen=True, slots=True)
class Step:
    """One bucket's move."""

    bucket: int
    source: int
    target: int
    rows: int
    load: float
    why: str


@dataclass(frozen=True, slots=True)
class Proposal:
    """What is planned for one collection."""

    collection: str
    balanced: bool
    verdict: str
    imbalance: float
    """max/mean of the shards' load; 1 is even."""
    imbalance_planned: float
    rows_moved: int
    shards: Sequence[ShardLoad]
    moves: Sequence[Step]


@command
async def rebalance(
    plan_only: Annotated[bool, typer.Option("--plan", help="Print what would move, and move nothing.")] = False,
    collection: Annotated[
        list[str] | None, typer.Option("--collection", "-c", help="Only these collections; may be repeated.")
    ] = None,
    over_s: Annotated[
        float,
        typer.Option("--over", min=0, max=3_600, help="Count searches for so many seconds; 0: since nodes started."),
    ] = 0.0,
    timeout_s: TimeoutOption = 60.0,
    mesh_file: MeshFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure the load of every bucket and say which should move where, and why. Needs the `admin` certificate.

    A bucket's load is a fifth of its share of bytes held and four fifths of its share of bytes scanned by searches.
    """
    if not plan_only:
        raise typer.BadParameter("only plans are made: say --plan. No command moves buckets yet")
    config = load(mesh_file)
    topologies = topology_file.load(config).collections
    for name in collection or ():
        if name not in topologies:
            raise ConfigError(f"{config.path} has no [collections.{name}]")
    wanted = {name: topologies[name] for name in dict.fromkeys(collection or sorted(topologies))}
    looks = await look(config, wanted, over_s, timeout_s)
    proposals = [propose(name, looks[name], topology.buckets) for name, topology in wanted.items()]
    if as_json:
        print_json(proposals)
        return
    for each in proposals:
        _print(each)


def propose(name: str, looks: Sequence[ShardLook], owners: Sequence[int]) -> Proposal:
    """The plan for one collection. `owners`: bucket -> shard."""
    loads = loads_of(looks, owners)
    shares, rows = loads.shares(Weights()), loads.rows.tolist()
    made = plan(shares, rows, owners, len(looks))
    return Proposal(
        collection=name,
        balanced=made.balanced,
        verdict=made.verdict,
        imbalance=made.imbalance_before,
        imbalance_planned=made.imbalance_after,
        rows_moved=made.rows,
        shards=_shards(looks, loads, shares, owners, made),
        moves=[_step(move) for move in made.moves],
    )


def _shards(
    looks: Sequence[ShardLook], loads: CellLoads, shares: NDArray[np.float64], owners: Sequence[int], made: Plan
) -> list[ShardLoad]:
    count = len(looks)
    rows = loads.rows.astype(np.float64)
    columns = [shard_loads(values, table, count) for values in (rows, shares) for table in (owners, made.owners)]
    return [
        ShardLoad(
            shard=each.shard,
            rows=int(columns[0][each.shard]),
            rows_planned=int(columns[1][each.shard]),
            searches_per_s=each.searches_per_s,
            load=float(columns[2][each.shard]),
            load_planned=float(columns[3][each.shard]),
            replicas_asked=each.answered,
            silent=each.silent,
        )
        for each in looks
    ]


def _step(move: Move) -> Step:
    return Step(move.cell, move.source, move.target, move.rows, move.load, move.reason)


def _print(proposal: Proposal) -> None:
    print_table(
        f"{proposal.collection}: shards",
        ("shard", "rows", "planned", "searches/s", "load", "planned load", "replicas asked"),
        [
            (x.shard, x.rows, x.rows_planned, round(x.searches_per_s, 2), x.load, x.load_planned, x.replicas_asked)
            for x in proposal.shards
        ],
    )
    for shard in proposal.shards:
        for reason in shard.silent:
            CONSOLE.print(f"shard {shard.shard} without {reason}", markup=False)
    if proposal.moves:
        print_table(
            f"{proposal.collection}: would move, in this order",
            ("bucket", "from", "to", "rows", "load", "why"),
            [(x.bucket, x.source, x.target, x.rows, x.load, x.why) for x in proposal.moves],
        )
    CONSOLE.print(f"{proposal.collection}: {proposal.verdict}", markup=False)
