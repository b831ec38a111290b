"""What a node tells metrics: its status, read when somebody scrapes.

Labels are the collection, the shard and the first digits of the replica's id, so there are no more series than replicas
times parts. One status serves all metrics of a scrape.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

from observability import metrics
from observability.metrics import Metric, Reading
from ostraka.v1 import shard_pb2
from services.runtime.clock import Clock
from services.shard import status
from services.shard.hosted import ReplicaPhase
from services.shard.node import Node

REUSED_S = 1.0
REPLICA_DIGITS = 8
SERVING = frozenset({ReplicaPhase.SERVING.value, ReplicaPhase.READ_ONLY.value})
State = shard_pb2.ReplicaState
Line = tuple[float, dict[str, str]]
"""A value and its labels beside those of the replica."""


def rows(state: State) -> Iterable[Line]:
    return [(state.rows_live, {"state": "live"}), (state.rows_dead, {"state": "dead"})]


def memory(state: State) -> Iterable[Line]:
    return [(part.bytes, {"part": part.part, "mapped": str(part.mapped).lower()}) for part in state.memory]


def canary(state: State) -> Iterable[Line]:
    return [(state.health.recall_canary, {})] if state.health.canary_queries else []


def imbalance(state: State) -> Iterable[Line]:
    known = [segment.list_imbalance for segment in state.segments if segment.list_imbalance]
    return [(max(known), {})] if known else []


def drift(state: State) -> Iterable[Line]:
    health = state.health
    known = health.quantization_error and health.quantization_error_basis
    return [(health.quantization_error / health.quantization_error_basis, {})] if known else []


def scrubbed(state: State) -> Iterable[Line]:
    return [(state.health.scrubbed_age_ms / 1_000, {})] if state.health.scrubbed_age_ms else []


READ: dict[Metric, Callable[[State], Iterable[Line]]] = {
    metrics.ROWS: rows,
    metrics.DELTA_ROWS: lambda state: [(state.delta_rows, {})],
    metrics.SEGMENTS: lambda state: [(len(state.segments), {})],
    metrics.BUILDS: lambda state: [(state.health.builds, {})],
    metrics.MEMORY: memory,
    metrics.RECALL_CANARY: canary,
    metrics.CANARY_QUERIES: lambda state: [(state.health.canary_queries, {})],
    metrics.LIST_IMBALANCE: imbalance,
    metrics.QUANTIZATION_DRIFT: drift,
    metrics.DAMAGE_FOUND: lambda state: [(state.health.damage_found, {})],
    metrics.SCRUBBED_AGE: scrubbed,
    metrics.STATISTICS_AGE: lambda state: [(state.lexical_statistics_age_ms / 1_000, {})],
    metrics.SERVING: lambda state: [(float(state.state in SERVING), {})],
}


class Measures:
    """Registers a node's readings; `close` takes them back."""

    def __init__(self, node: Node, clock: Clock) -> None:
        self._node, self._clock = node, clock
        self._lock = threading.Lock()
        self._seen: tuple[float, list[State]] | None = None
        self._forget = [
            metrics.observe(metric, lambda read=read: self._lines(read))  # type: ignore[misc]  # the loop's own value
            for metric, read in READ.items()
        ]

    def close(self) -> None:
        for forget in self._forget:
            forget()

    def _lines(self, read: Callable[[State], Iterable[Line]]) -> list[Reading]:
        return [(value, {**labels_of(state), **labels}) for state in self._states() for value, labels in read(state)]

    def _states(self) -> list[State]:
        with self._lock:
            now_s = self._clock.monotonic_s()
            if self._seen is None or now_s - self._seen[0] > REUSED_S:
                self._seen = (now_s, list(status.node_status(self._node).replicas))
            return self._seen[1]


def labels_of(state: State) -> dict[str, str]:
    """Whose a value is."""
    return {"collection": state.collection, "shard": str(state.shard), "replica": state.replica[:REPLICA_DIGITS]}
