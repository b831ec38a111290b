"""How far behind a replica may be: what a read at level BOUNDED asks.

A write that was acknowledged is on W voters. A replica that took over everything N-W other voters had when they were
asked has therefore every write acknowledged before it began to ask: of any N-W+1 voters one holds it.
"""

from __future__ import annotations

from services.quorum.members import Members
from services.runtime.clock import Clock
from services.runtime.deadline import Deadline
from services.shard.hosted import HostedReplica
from services.shard.repair import Repair


class TooStaleError(Exception):
    """The replica's last exchange with enough voters is older than asked for."""


def staleness_ms(members: Members, own_id: str, repair: Repair | None, now_s: float) -> int | None:
    """Since the last finished exchange with N-W other voters began, in ms rounded up; None when there was none.

    A replica without a vote needs one more: it is not itself one of the N-W+1.
    """
    needed = len(members.voters) - members.write_quorum + (members.voter(own_id) is None)
    if not needed:
        return 0
    began = {} if repair is None else repair.exchanged
    others = (began.get(voter.replica_id) for voter in members.voters if voter.replica_id != own_id)
    latest = sorted((began_s for began_s in others if began_s is not None), reverse=True)
    return None if len(latest) < needed else max(0, -int((latest[needed - 1] - now_s) * 1_000 // 1))


async def fresh_enough(
    replica: HostedReplica,
    repair: Repair | None,
    clock: Clock,
    max_ms: int,
    deadline: Deadline,
    *,
    refresh: bool,
) -> int | None:
    """The replica's staleness in ms (None: unknown), less than `max_ms` unless that is 0, which allows any.

    With `refresh` a replica that is too stale exchanges with its peers first. Raises TooStaleError.
    """

    # Measured when the request came: an exchange that began after that has everything it may ask for.
    arrived_s = clock.monotonic_s()

    def age() -> int | None:
        return staleness_ms(replica.members, replica.replica_id, repair, arrived_s)

    found = age()
    if not max_ms or (found is not None and found < max_ms):
        return found
    if refresh and repair is not None:
        await repair.refresh(replica.peers_needed, arrived_s - max_ms / 1_000, deadline)
        found = age()
        if found is not None and found < max_ms:
            return found
    others = replica.peers_needed
    told = "has not happened since the replica started" if found is None else f"began {found} ms ago"
    raise TooStaleError(
        f"the last finished exchange with {others} other voters {told}; asked for less than {max_ms} ms"
    )
