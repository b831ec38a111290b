"""A replica's state as the contract reports it."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import psutil

from ostraka.v1 import shard_pb2
from services.shard import memory
from services.shard.codec_wire import record_to_wire
from services.shard.engine import Engine
from services.shard.hosted import HostedReplica
from services.shard.node import Node
from services.shard.segment import Segment
from services.shard.store import StoreError
from services.shard.view import View
from services.shard.wire import set_to_wire


class _Imbalances:
    """List imbalance by segment, counted once: a sealed segment does not change, and counting takes a millisecond for
    each few hundred lists."""

    def __init__(self, kept_max: int = 4_096) -> None:
        self._known: dict[Path, float] = {}
        self._kept_max = kept_max

    def of(self, segment: Segment) -> float:
        found = self._known.get(segment.directory)
        if found is None:
            if len(self._known) >= self._kept_max:
                self._known.clear()
            found = self._known[segment.directory] = segment.list_imbalance()
        return found


_IMBALANCES = _Imbalances()


def node_status(node: Node) -> shard_pb2.NodeStatusResponse:
    """Every replica of a node, and what the process takes."""
    status = shard_pb2.NodeStatusResponse(node=node.name, resident_bytes=psutil.Process().memory_info().rss)
    told: set[str] = set()
    for replica in tuple(node.replicas.values()):
        state = replica_state(replica)
        # Replicas of a collection share what the node heard of other shards: it is told once, with the first.
        if replica.engine is not None and replica.collection not in told:
            told.add(replica.collection)
            state.memory.add(part="statistics", bytes=node.statistics.bytes_of(replica.collection))
        state.lexical_statistics_age_ms = node.statistics.age_ms(replica.collection, replica.shard)
        status.replicas.append(state)
    return status


def replica_state(replica: HostedReplica) -> shard_pb2.ReplicaState:
    """Everything an operator is told about one replica."""
    state = shard_pb2.ReplicaState(
        collection=replica.collection,
        shard=replica.shard,
        replica=replica.replica_id,
        state=replica.phase.value,
        epoch=replica.members.epoch,
        message=replica.message(),
        learner=not replica.votes,
    )
    if replica.engine is not None:
        state.epoch, state.frozen = replica.engine.core.epoch, replica.engine.core.frozen
        _add_view(state, replica.engine.view)
        # Files may go away between the look at the view and the look at them: a status without them beats none.
        with suppress(OSError, StoreError):
            for part in memory.parts_of(replica.engine):
                state.memory.add(part=part.part, bytes=part.bytes, mapped=part.mapped)
        _add_health(state.health, replica, replica.engine)
    return state


def _add_view(state: shard_pb2.ReplicaState, view: View) -> None:
    state.applied.CopyFrom(set_to_wire(view.applied))
    state.index_epoch = view.index_epoch
    state.rows_live = view.rows_live
    state.rows_dead = view.rows_dead
    state.documents_live = view.documents_live
    state.delta_rows = view.delta.live
    state.digest = view.digest_bytes
    state.hlc_max = view.hlc_max
    for part in view.parts:
        state.segments.add(
            name=part.segment.name,
            index_kind=part.segment.manifest.factory,
            rows=part.segment.rows,
            rows_live=part.live,
            bytes=part.segment.bytes_on_disk(),
            codec=part.segment.manifest.codec,
            recall=part.segment.manifest.recall,
            list_imbalance=_IMBALANCES.of(part.segment),
        )


def _add_health(health: shard_pb2.IndexHealth, replica: HostedReplica, engine: Engine) -> None:
    """What the replica measured of itself; zeros where nothing was measured yet."""
    if replica.canary is not None:
        seen = replica.canary.reading()
        if seen.queries:
            health.recall_canary = seen.recall
            health.canary_queries = seen.queries
            health.canary_age_ms = seen.age_ms
    if replica.drift is not None:
        drift = replica.drift.reading()
        health.quantization_error = drift.error
        health.quantization_error_basis = drift.error_basis
        if (record := replica.drift.codec()) is not None:
            health.codec.CopyFrom(record_to_wire(record))
    health.damage_found = engine.ledger.found
    if replica.upkeep is not None:
        health.builds, health.building = replica.upkeep.builds, replica.upkeep.building
        health.scrubbed_age_ms = replica.upkeep.scrub.reading().age_ms or 0
