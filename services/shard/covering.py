"""Whether a replica can be read, and a view of it that contains what the caller requires."""

from __future__ import annotations

from collections.abc import Sequence

from services.quorum.gtid import GtidSet
from services.quorum.status import ReplicaStatus
from services.runtime.deadline import Deadline
from services.shard.hosted import HostedReplica
from services.shard.repair import Repair
from services.shard.view import View


class NotCoveredError(Exception):
    """The view could not reach what the caller requires."""


def unable(replica: HostedReplica | None) -> ReplicaStatus:
    """The status of a replica that cannot answer."""
    return ReplicaStatus.UNKNOWN_REPLICA if replica is None else ReplicaStatus.FAILED


def readable(replica: HostedReplica | None) -> tuple[ReplicaStatus | None, str]:
    """(why the replica cannot be read, in words), or (None, "").

    Whatever its epoch: a view that contains what is required answers for it, also while members change. As a vote a
    read counts only in the `voting_epoch` that the answer names.
    """
    if replica is None or replica.engine is None or replica.reason:
        return unable(replica), replica.reason if replica else "not hosted here"
    return None, ""


def voting(replica: HostedReplica | None, epoch: int) -> tuple[ReplicaStatus | None, str]:
    """(why the replica does not speak for a quorum of `epoch`, in words), or (None, "")."""
    if replica is None or replica.engine is None or replica.reason:
        return readable(replica)
    core = replica.engine.core
    status = core.epoch_status(epoch)
    if status is ReplicaStatus.OK:
        return None, ""
    return status, f"epoch {epoch} was asked for, the replica is in {core.epoch}{', frozen' if core.frozen else ''}"


async def covering(
    replica: HostedReplica,
    repair: Repair | None,
    require: GtidSet,
    holders: Sequence[str],
    wait_ms: int,
    deadline: Deadline,
) -> tuple[View, bool]:
    """(a view that contains `require`, whether that took waiting). Raises NotCoveredError."""
    assert replica.engine is not None, "the caller looked"
    if replica.engine.view.applied.issuperset(require):
        return replica.engine.view, False
    view = await replica.covering_view(require, deadline.at_most_ms(wait_ms))
    if view is None and repair is not None:
        await repair.fetch(require, holders, deadline)
        view = replica.engine.view if replica.engine.view.applied.issuperset(require) else None
    if view is None:
        missing = require.difference(replica.engine.view.applied)
        raise NotCoveredError(f"{len(missing)} required batches did not arrive within {wait_ms} ms and a pull")
    return view, True
