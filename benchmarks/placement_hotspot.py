"""Ninety queries of a hundred to a tenth of the cells, and what the policy makes of it, in simulated time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from services.placement import rebalancing
from services.placement.cells import Cells
from services.placement.load import HALF_LIFE_S, CellLoads, Weights, imbalance, shard_loads
from services.placement.moves import THRESHOLD, Move
from services.placement.probing import cells_within
from services.placement.rebalancing import Rebalancing

__all__ = ["HALF_LIFE_S", "HOW", "THRESHOLD", "Kind", "run"]

HOT_CELLS = 0.1
HOT_QUERIES = 0.9
DISTINCT = 2_000
"""Different queries of each sort."""
LOOK_S = 10.0
QUERIES_PER_LOOK = 1_000
LOOKS = 720
ROW_BYTES = 384 * 2
POLICIES = {"default": Weights(), "halves": Weights(0.5, 0.5)}
HOW = f"""A tenth of the cells with rows is hot. *scattered*: drawn uniformly. *one topic*: one cell drawn uniformly,
and those nearest to it. Each query is a stored passage: with probability {HOT_QUERIES:g} one of {DISTINCT:,} drawn
uniformly from the passages of hot cells, else one of {DISTINCT:,} from the others. It scans every cell within (1 + e)
of its nearest one, e as chosen above, and where these belong to one shard the nearest cell of another shard as well. A
cell costs its probes per second times its bytes. {QUERIES_PER_LOOK:,} queries in {LOOK_S:g} s of simulated time, one
look at the counters each {LOOK_S:g} s, for {LOOKS * LOOK_S / 3600:g} hours; a move lasts until the next look. Before:
as the first move begins, after {rebalancing.PATIENCE_S:g} s out of balance, or at the end when nothing moves. After:
at the end. The assignment at the beginning knows how many rows cells have, and nothing of queries."""


class Kind(Enum):
    """Which cells are hot."""

    SCATTERED = "scattered"
    TOPIC = "one topic"


@dataclass(frozen=True, slots=True)
class Balance:
    """max/mean over shards."""

    load: float
    """As the policy weighs it."""
    scanned: float
    held: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run did."""

    before: Balance
    after: Balance
    moves: tuple[tuple[float, Move], ...]
    """(simulated second, move)"""
    owners: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Workload:
    """Queries to cells of a corpus."""

    kind: Kind
    cells: Cells
    vectors: NDArray[np.float32]
    of_rows: NDArray[np.int64]
    """row -> cell."""
    e: float
    seed: int


def run(workload: Workload, owners: Sequence[int], shards: int, weights: Weights) -> Outcome:
    """Look, step and move until the end. `owners`: cell -> shard."""
    cells, random = workload.cells, np.random.default_rng(workload.seed)
    rows = np.bincount(workload.of_rows, minlength=cells.count)
    of_hot_cells = np.isin(workload.of_rows, _hot(workload.kind, cells, rows, random))
    distances = [
        _distances(cells, workload.vectors, np.flatnonzero(side), random) for side in (of_hot_cells, ~of_hot_cells)
    ]
    e = workload.e
    table = list(owners)
    probed = [_probed(each, table, e) for each in distances]
    counters = np.zeros(cells.count, dtype=np.int64)
    loads = CellLoads.first(0.0, rows.tolist(), ROW_BYTES, counters.tolist())
    state, moves, before = Rebalancing(), [], None
    for look in range(1, LOOKS + 1):
        of_hot = random.binomial(QUERIES_PER_LOOK, HOT_QUERIES)
        for share, lines in zip((of_hot, QUERIES_PER_LOOK - of_hot), probed, strict=True):
            counters += random.multinomial(share, np.full(len(lines), 1 / len(lines))) @ lines
        loads = loads.observed(look * LOOK_S, rows.tolist(), counters.tolist())
        if state.under_way is not None:
            table[state.under_way.cell] = state.under_way.target
            probed = [_probed(each, table, e) for each in distances]
            state = rebalancing.finished(state)
        now = _balance(loads, weights, table, shards)
        state, move = rebalancing.step(state, look * LOOK_S, loads.shares(weights), rows.tolist(), table, shards)
        if move is not None:
            before = before or now
            moves.append((look * LOOK_S, move))
    return Outcome(before or now, now, tuple(moves), tuple(table))


def _hot(kind: Kind, cells: Cells, rows: NDArray[np.int64], random: np.random.Generator) -> NDArray[np.int64]:
    present = np.flatnonzero(rows)
    count = round(HOT_CELLS * len(present))
    if kind is Kind.SCATTERED:
        return random.choice(present, count, replace=False)
    middle = cells.centroids[random.choice(present)]
    return present[np.argsort(-(cells.centroids[present] @ middle), kind="stable")[:count]]


def _distances(
    cells: Cells, vectors: NDArray[np.float32], rows: NDArray[np.int64], random: np.random.Generator
) -> NDArray[np.float64]:
    chosen = random.choice(rows, min(DISTINCT, len(rows)), replace=False)
    return np.stack([cells.distances(vectors[row]) for row in chosen])


def _probed(distances: NDArray[np.float64], owners: Sequence[int], e: float) -> NDArray[np.int64]:
    """(queries, cells): 1 where a query scans a cell."""
    table = np.asarray(owners)
    made = np.zeros(distances.shape, dtype=np.int64)
    for line, of_query in zip(made, distances, strict=True):
        near = cells_within(of_query, e)
        line[near] = 1
        others = np.flatnonzero(table != table[near[0]])
        if len(set(table[near].tolist())) == 1 and len(others):
            line[others[of_query[others].argmin()]] = 1
    return made


def _balance(loads: CellLoads, weights: Weights, owners: Sequence[int], shards: int) -> Balance:
    of_cells = (loads.shares(weights), loads.scanned_per_s, loads.bytes_held)
    load, scanned, held = (imbalance(shard_loads(each, owners, shards)) for each in of_cells)
    return Balance(load, scanned, held)
