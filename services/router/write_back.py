"""The second half of a linearizable read: what is returned is on W voters before the caller has it.

Attiya, Bar-Noy and Dolev, "Sharing Memory Robustly in Message-Passing Systems" (1995). A write that ended UNCERTAIN may
be on one voter only; a read that returned it, and then a read whose quorum misses that voter, would see it come and go.
Voters that lack the batches pull them from those that have them, so a read sends no content.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import grpc

from ostraka.v1 import shard_pb2
from services.quorum.gtid import GtidSet
from services.quorum.members import Members, ReplicaRef
from services.quorum.status import ReplicaStatus
from services.quorum.vote import Vote, tally
from services.router.catalogue import Collection
from services.router.node_links import NodeLinks
from services.router.read_types import ShardOutcome
from services.router.wire import SetReader, set_to_proto, status_from_proto
from services.runtime.deadline import Deadline
from services.runtime.errors import Unavailable

RETRY_MS = 200


class WriteBack:
    """Has batches spread to W voters."""

    def __init__(self, links: NodeLinks, wait_ms: int) -> None:
        """`wait_ms`: how long a voter waits for a batch that may be on its way before it pulls."""
        self._links, self._wait_ms = links, wait_ms

    async def everywhere(
        self,
        collection: Collection,
        outcomes: Sequence[ShardOutcome[shard_pb2.GetDocumentsResponse]],
        reader: SetReader,
        deadline: Deadline,
    ) -> None:
        """Every shard's part of a read. Raises Unavailable when a shard's batches did not reach W voters in time."""
        for outcome in outcomes:
            assert outcome.reply is not None, "a linearizable read has every shard"
            batches = reader.read(outcome.reply.value.batches)
            members = collection.members[outcome.shard]
            known = {outcome.reply.replica}
            if outcome.round is not None:
                told = ((voter.replica_id, outcome.round.applied(voter.replica_id)) for voter in members.voters)
                known |= {name for name, applied in told if applied is not None and applied.issuperset(batches)}
            acks, reason = await self.spread(collection.name, outcome.shard, members, batches, known, deadline)
            if acks < members.write_quorum:
                raise Unavailable(
                    f"collection {collection.name!r}, shard {outcome.shard}: what was read is on {acks} of the "
                    f"{members.write_quorum} voters that LINEARIZABLE needs; {reason}; QUORUM may be had",
                    retry_ms=RETRY_MS,
                    reason="WRITE_BACK_FAILED",
                    definite=True,
                )

    async def spread(
        self, collection: str, shard: int, members: Members, batches: GtidSet, known: set[str], deadline: Deadline
    ) -> tuple[int, str]:
        """(voters that hold the batches: W or more, unless fewer could be had, and why not then).

        `known`: ids of current voters that were heard to hold them.
        """
        holding = {voter.replica_id for voter in members.voters if voter.replica_id in known}
        if not batches or len(holding) >= members.write_quorum:
            return max(len(holding), members.write_quorum), ""
        holders = [voter.node for voter in members.voters if voter.replica_id in holding]
        request = shard_pb2.CoverRequest(
            epoch=members.epoch,
            collection=collection,
            shard=shard,
            require=set_to_proto(batches),
            holders=holders,
            wait_ms=self._wait_ms,
        )
        lacking = [voter for voter in members.voters if voter.replica_id not in holding]
        return await self._ask(members, lacking, request, len(holding), deadline)

    async def _ask(
        self,
        members: Members,
        lacking: Sequence[ReplicaRef],
        request: shard_pb2.CoverRequest,
        acks: int,
        deadline: Deadline,
    ) -> tuple[int, str]:
        problems: list[str] = []
        tasks = [asyncio.create_task(self._cover(voter, request, deadline)) for voter in lacking]
        try:
            for next_done in asyncio.as_completed(tasks):
                problem = await next_done
                if problem:
                    problems.append(problem)
                else:
                    acks += 1
                vote = tally(voters=len(members.voters), needed=members.write_quorum, yes=acks, no=len(problems))
                if vote is not Vote.PENDING:
                    break
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return acks, "; ".join(problems)

    async def _cover(self, voter: ReplicaRef, request: shard_pb2.CoverRequest, deadline: Deadline) -> str:
        """Why the voter does not hold the batches; empty when it does."""
        try:
            reply = await self._links[voter.node].stub.Cover(request, timeout=deadline.remaining_s())
        except grpc.aio.AioRpcError as error:
            return f"node {voter.node}: {error.code().name}"
        status = status_from_proto(reply.status)
        if status is ReplicaStatus.OK and reply.replica != voter.replica_id:
            return f"node {voter.node}: another replica than expected answered"
        return "" if status is ReplicaStatus.OK else f"node {voter.node}: {status.name} {reply.message}".rstrip()
