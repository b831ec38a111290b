"""A replica's state as the contract reports it."""

from __future__ import annotations

from ostraka.v1 import shard_pb2
from services.shard.hosted import HostedReplica
from services.shard.view import View
from services.shard.wire import set_to_wire


def replica_state(replica: HostedReplica) -> shard_pb2.ReplicaState:
    """Everything an operator is told about one replica."""
    state = shard_pb2.ReplicaState(
        collection=replica.collection,
        shard=replica.shard,
        replica=replica.replica_id,
        state=replica.phase.value,
        epoch=replica.members.epoch,
        message=replica.message(),
    )
    if replica.engine is not None:
        _add_view(state, replica.engine.view)
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
        )
