"""A bounded plan of moves from the assignment that is: one cell at a time, each with its reason.

A cell is a bucket of the topology's table; under hash placement buckets move by the same rules.

Every step takes a cell off the most loaded shard and leaves both shards of the step below what that one had, so the
greatest load never rises and no assignment comes back. Among steps that help much the one that copies few rows for what
it gains is taken, since rows are what a move costs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from services.placement.load import imbalance, shard_loads

THRESHOLD: Final = 1.3
"""max/mean above which something should move."""
AIM: Final = 1.2
"""A plan goes on to this, below the threshold, so that the next small change does not start another."""
MOVES_MAX: Final = 64
MUCH: Final = 0.5
"""Steps that gain at least this share of the best gain are compared by rows."""


@dataclass(frozen=True, slots=True)
class Move:
    """One cell from one shard to another; loads as shares of the whole."""

    cell: int
    source: int
    target: int
    rows: int
    load: float
    source_before: float
    source_after: float
    target_before: float
    target_after: float

    @property
    def reason(self) -> str:
        """For people."""
        return (
            f"bucket {self.cell} ({self.load:.2%} of the load, {self.rows} rows) from shard {self.source} "
            f"({self.source_before:.2%} -> {self.source_after:.2%}) to shard {self.target} "
            f"({self.target_before:.2%} -> {self.target_after:.2%})"
        )


@dataclass(frozen=True, slots=True)
class Plan:
    """What would move, in order, and what that does to max/mean."""

    moves: tuple[Move, ...]
    owners: tuple[int, ...]
    """cell -> shard after all moves."""
    balanced: bool
    """Within the threshold before any move, so none is made."""
    imbalance_before: float
    imbalance_after: float
    verdict: str
    """Why nothing moves, or why the plan ends where it does."""

    @property
    def rows(self) -> int:
        """Copied by the whole plan."""
        return sum(move.rows for move in self.moves)


def plan(
    loads: NDArray[np.float64],
    rows: Sequence[int],
    owners: Sequence[int],
    shards: int,
    *,
    threshold: float = THRESHOLD,
    aim: float = AIM,
    moves_max: int = MOVES_MAX,
) -> Plan:
    """Moves from `owners` (cell -> shard) until max/mean is at most `aim`; none while it is within `threshold`.

    `loads` (cells,): a share each, or any unit; what is reported is the share. `rows`: of each cell.
    Raises ValueError for lengths that differ, an owner that is no shard, or an aim that is not in [1, threshold].
    """
    _check(loads, rows, owners, shards, threshold, aim)
    total = float(loads.sum())
    shares = loads / total if total > 0 else np.zeros(len(loads))
    table = list(owners)
    before = imbalance(shard_loads(shares, table, shards))
    if before <= threshold:
        verdict = f"balanced: max/mean {before:.2f} is within {threshold:g}; nothing needs to move"
        return Plan((), tuple(table), True, before, before, verdict)
    made: list[Move] = []
    while len(made) < moves_max and imbalance(shard_loads(shares, table, shards)) > aim:
        move = next_move(shares, rows, table, shards)
        if move is None:
            break
        made.append(move)
        table[move.cell] = move.target
    after = imbalance(shard_loads(shares, table, shards))
    return Plan(tuple(made), tuple(table), False, before, after, _verdict(shares, table, shards, after, aim, len(made)))


def next_move(shares: NDArray[np.float64], rows: Sequence[int], owners: Sequence[int], shards: int) -> Move | None:
    """The best single step off the most loaded shard; None when no step helps."""
    of_shards = shard_loads(shares, owners, shards)
    source = int(of_shards.argmax())
    helping = list(_helping(shares, rows, owners, of_shards, source))
    if not helping:
        return None
    gains = [of_shards[source] - max(move.source_after, move.target_after) for move in helping]
    floor = MUCH * max(gains)
    wanted = [(gain / (move.rows + 1), move) for gain, move in zip(gains, helping, strict=True) if gain >= floor]
    return max(wanted, key=lambda pair: (pair[0], -pair[1].cell, -pair[1].target))[1]


def _helping(
    shares: NDArray[np.float64], rows: Sequence[int], owners: Sequence[int], of_shards: NDArray[np.float64], source: int
) -> Iterator[Move]:
    """The least loaded shard is the best target of every cell, so it is the only one looked at."""
    target = int(of_shards.argmin())
    before, other = float(of_shards[source]), float(of_shards[target])
    for cell, owner in enumerate(owners):
        load = float(shares[cell])
        if owner == source and load > 0 and other + load < before:
            yield Move(cell, source, target, rows[cell], load, before, before - load, other, other + load)


def _verdict(
    shares: NDArray[np.float64], owners: Sequence[int], shards: int, after: float, aim: float, moves: int
) -> str:
    if after <= aim:
        return f"max/mean {after:.2f} after {moves} moves"
    if next_move(shares, [0] * len(shares), owners, shards) is not None:
        return f"max/mean {after:.2f} after {moves} moves, as many as one plan may have"
    source = int(shard_loads(shares, owners, shards).argmax())
    hottest = max((cell for cell, owner in enumerate(owners) if owner == source), key=lambda cell: float(shares[cell]))
    return (
        f"max/mean {after:.2f} after {moves} moves; moving one bucket helps no more: bucket {hottest} alone is "
        f"{shares[hottest]:.2%} of the load on {shards} shards. Learners spread its reads"
    )


def _check(
    loads: NDArray[np.float64], rows: Sequence[int], owners: Sequence[int], shards: int, threshold: float, aim: float
) -> None:
    if not len(loads) == len(rows) == len(owners) or not len(loads):
        raise ValueError(f"{len(loads)} loads, {len(rows)} rows, {len(owners)} owners; there must be as many, and some")
    if not np.isfinite(loads).all() or loads.min() < 0 or min(rows) < 0:
        raise ValueError("loads and rows are finite and not negative")
    if not 0 <= min(owners) <= max(owners) < shards:
        raise ValueError(f"owners are shards 0 to {shards - 1}, not {min(owners)} to {max(owners)}")
    if not 1 <= aim <= threshold:
        raise ValueError(f"aim {aim} lies between 1 and the threshold {threshold}")
