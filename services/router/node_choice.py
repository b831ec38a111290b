"""Which node to ask next: what the coordinator remembers of each, and how it spreads its calls. Pure.

Nothing here is needed for correctness: any replica whose view contains what is required answers rightly.
A wrong guess costs one hedge.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

# A node that failed or went silent is tried last for this long, unless it answers anything before. Long
# enough that a paused node costs few hedges, short enough that a node used only at level ONE comes back.
SUSPECT_S = 2.0
# A node whose view lacked what a quorum read required is tried last for this long: about a gossip period,
# after which it has caught up or is asked once more.
BEHIND_S = 0.5
# Hedges allowed per leg sent, and how many may be saved up: a slow cluster is not made slower by its
# coordinator, while one paused node under a few hundred concurrent calls stays affordable.
HEDGE_SHARE = 0.1
HEDGES_SAVED_MAX = 256.0
# However slow the mesh is, a silent node is not waited for longer than this.
HEDGE_AFTER_S_MAX = 0.5


@dataclass(slots=True)
class _Node:
    outstanding: int = 0
    avoided_until_s: float = 0.0
    heard_s: float = -1.0
    silent: bool = False
    last_turn: int = 0


class NodeBook:
    """Per node: calls under way and whether it failed, hung or lagged recently. Time is an argument."""

    def __init__(self, nodes: Iterable[str]) -> None:
        self._nodes = {node: _Node() for node in nodes}
        self._turn = 0

    def ranked(self, now_s: float) -> list[str]:
        """Nodes, best to ask first: not avoided, least under way, longest not chosen."""

        def key(node: str) -> tuple[bool, int, int]:
            state = self._nodes[node]
            return state.avoided_until_s > now_s, state.outstanding, state.last_turn

        return sorted(self._nodes, key=key)

    def sent(self, node: str) -> None:
        """A call to the node began. Every one is followed by `answered`, `failed` or `released`."""
        state = self._nodes[node]
        state.outstanding += 1
        self._turn += 1
        state.last_turn = self._turn

    def released(self, node: str) -> None:
        """The call ended in a way that says nothing about the node."""
        state = self._nodes[node]
        assert state.outstanding > 0, f"a call to {node} ended that never began"
        state.outstanding -= 1

    def heard(self, node: str, now_s: float) -> None:
        """The node answered something, so it is neither dead nor paused."""
        state = self._nodes[node]
        state.heard_s = now_s
        if state.silent:
            state.silent, state.avoided_until_s = False, 0.0

    def silent(self, node: str, now_s: float, since_s: float | None = None) -> None:
        """The node failed, or has not answered a call sent at `since_s`; unless it answered another one since."""
        state = self._nodes[node]
        if since_s is None or state.heard_s < since_s:
            state.silent = True
            self._avoid(node, now_s + SUSPECT_S)

    def behind(self, node: str, now_s: float) -> None:
        """The node's view lacked acknowledged writes."""
        self._avoid(node, now_s + BEHIND_S)

    def avoided(self, node: str, now_s: float) -> bool:
        """Whether the node is tried last."""
        return self._nodes[node].avoided_until_s > now_s

    def outstanding(self, node: str) -> int:
        """Calls to the node under way."""
        return self._nodes[node].outstanding

    def _avoid(self, node: str, until_s: float) -> None:
        state = self._nodes[node]
        state.avoided_until_s = max(state.avoided_until_s, until_s)


class HedgePace:
    """After how long a leg counts as slow: the smoothed latency plus four mean deviations, as TCP decides when to
    send again (Jacobson, "Congestion Avoidance and Control", 1988). A mesh that is slow as a whole is not made
    slower by asking everything twice."""

    def __init__(self) -> None:
        self._smoothed_s = 0.0
        self._deviation_s = 0.0

    def observe(self, latency_s: float) -> None:
        """A leg was answered after this long."""
        error_s = latency_s - self._smoothed_s
        self._smoothed_s += error_s / 8
        self._deviation_s += (abs(error_s) - self._deviation_s) / 4

    @property
    def smoothed_s(self) -> float:
        """How long a leg takes by now."""
        return self._smoothed_s

    def hedge_after_s(self, least_s: float) -> float:
        """When to ask another replica: not before `least_s`, at the latest after HEDGE_AFTER_S_MAX."""
        return max(least_s, min(self._smoothed_s + 4 * self._deviation_s, HEDGE_AFTER_S_MAX))


class HedgeBudget:
    """A token bucket: each leg earns a share of a hedge, each hedge spends one."""

    def __init__(self, share: float = HEDGE_SHARE, saved_max: float = HEDGES_SAVED_MAX) -> None:
        self._share = share
        self._saved_max = saved_max
        self._saved = saved_max

    def earn(self) -> None:
        self._saved = min(self._saved_max, self._saved + self._share)

    def spend(self) -> bool:
        """Whether one more hedge is affordable; if so it is paid for."""
        if self._saved < 1.0:
            return False
        self._saved -= 1.0
        return True
