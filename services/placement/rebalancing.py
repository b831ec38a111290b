"""When to move a cell: only after ten minutes out of balance, and one at a time.

A state and a step. WATCHING waits until max/mean has been above the threshold without a pause for long enough;
then cells move one by one until it is at most the aim, and watching begins anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from services.placement.load import imbalance, shard_loads
from services.placement.moves import AIM, MOVES_MAX, THRESHOLD, Move, next_move

PATIENCE_S: Final = 600.0


@dataclass(frozen=True, slots=True)
class Rebalancing:
    """What is remembered from one look to the next."""

    above_since_s: float | None = None
    """Since when max/mean has been above the threshold; None: it is not."""
    moves_left: int = 0
    """Above 0: cells are being moved."""
    under_way: Move | None = None


def step(
    state: Rebalancing,
    now_s: float,
    loads: NDArray[np.float64],
    rows: Sequence[int],
    owners: Sequence[int],
    shards: int,
) -> tuple[Rebalancing, Move | None]:
    """One look, and the move to begin now, if any. `loads` (cells,) are shares; `now_s` never goes back."""
    if state.under_way is not None:
        return state, None
    ratio = imbalance(shard_loads(loads, owners, shards))
    if state.moves_left:
        move = next_move(loads, rows, owners, shards) if ratio > AIM else None
        if move is None:
            return Rebalancing(), None
        return replace(state, moves_left=state.moves_left - 1, under_way=move), move
    if ratio <= THRESHOLD:
        return Rebalancing(), None
    since_s = now_s if state.above_since_s is None else state.above_since_s
    if now_s - since_s < PATIENCE_S:
        return Rebalancing(above_since_s=since_s), None
    return step(Rebalancing(moves_left=MOVES_MAX), now_s, loads, rows, owners, shards)


def finished(state: Rebalancing) -> Rebalancing:
    """The move under way is done, or was given up: `owners` of the next step say which. Raises ValueError."""
    if state.under_way is None:
        raise ValueError("no move is under way")
    return Rebalancing(moves_left=state.moves_left) if state.moves_left else Rebalancing()
