"""Repetitions of a write that its caller named: found on the shard's voters, since routers keep nothing.

A write's key is stored with the operation of its batch. Before a keyed write gets a version, a read quorum is asked for
the key; what is found is that write, whatever became of its first attempt, and is only made as durable as its level
says. So a repetition through any router never overrides what was written after the first attempt. An attempt that no
answering voter has applied is not found: it was acknowledged to nobody, and the repetition counts as the first.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import grpc

from ostraka.v1 import shard_pb2
from services.quorum.clock import Version
from services.quorum.gtid import Gtid, GtidSet
from services.quorum.members import Members, ReplicaRef
from services.quorum.rows import OpKey
from services.quorum.write import Outcome
from services.router.catalogue import Collection
from services.router.levels import WriteLevel, members_at
from services.router.membership import ATTEMPTS_MAX, Membership
from services.router.node_links import NodeLinks
from services.router.write_back import WriteBack
from services.router.writing import Written
from services.runtime.deadline import Deadline
from services.runtime.errors import FailedPrecondition, Unavailable

# After R voters have answered, how long the others are waited for: one of them may be the only one that knows.
LINGER_S = 0.1
RETRY_MS = 200


@dataclass(frozen=True, slots=True)
class Earlier:
    """An earlier attempt, and the batch it travelled in."""

    written: Written
    gtid: Gtid


@dataclass(frozen=True, slots=True)
class _Found:
    key: OpKey
    gtid: Gtid
    version: Version
    replica_id: str


class KeyedWrites:
    """Finds earlier attempts of writes."""

    def __init__(self, links: NodeLinks, write_back: WriteBack, membership: Membership) -> None:
        self._links, self._write_back, self._membership = links, write_back, membership

    async def earlier(
        self, collection: Collection, keys: Sequence[OpKey], level: WriteLevel.ValueType, deadline: Deadline
    ) -> Mapping[str, Earlier]:
        """By document id, the attempts that were found, as durable as could be had by the deadline.

        Raises FailedPrecondition when a key named other content, Unavailable when a shard has no read quorum.
        """
        by_shard: dict[int, list[OpKey]] = {}
        for key in keys:
            by_shard.setdefault(collection.shard_of(key.document_id), []).append(key)
        parts = await asyncio.gather(
            *(self._steadily(collection, shard, wanted, level, deadline) for shard, wanted in by_shard.items())
        )
        return {document_id: found for part in parts for document_id, found in part.items()}

    async def _steadily(
        self,
        collection: Collection,
        shard: int,
        wanted: Sequence[OpKey],
        level: WriteLevel.ValueType,
        deadline: Deadline,
    ) -> dict[str, Earlier]:
        """One shard's, by one membership; again by the next one when that did not do and members have changed."""
        for _ in range(ATTEMPTS_MAX - 1):
            collection = await self._membership.serving(collection, (shard,), deadline)
            try:
                found = await self._of_shard(collection, shard, wanted, level, deadline)
                if all(each.written.outcome is Outcome.ACKNOWLEDGED for each in found.values()):
                    return found
            except Unavailable:
                found = None
            newer = await self._membership.after(collection, deadline)
            if newer is None:
                break
            collection = newer
        return await self._of_shard(collection, shard, wanted, level, deadline) if found is None else found

    async def _of_shard(
        self,
        collection: Collection,
        shard: int,
        wanted: Sequence[OpKey],
        level: WriteLevel.ValueType,
        deadline: Deadline,
    ) -> dict[str, Earlier]:
        told = await self._ask(collection, shard, wanted, deadline)
        members = members_at(collection.members[shard], level)
        result: dict[str, Earlier] = {}
        for key in wanted:
            attempts = [found for found in told if found.key.document_id == key.document_id]
            if not attempts:
                continue
            if any(found.key.content != key.content for found in attempts):
                raise FailedPrecondition(
                    f"{key.key!r} named another write of document {key.document_id!r}; repeat that write unchanged, "
                    "or take a new key",
                    "idempotency_key",
                )
            last = max(attempts, key=lambda found: found.version)
            known = {found.replica_id for found in attempts if found.gtid == last.gtid}
            batch = GtidSet.of(last.gtid)
            acks, reason = await self._write_back.spread(collection.name, shard, members, batch, known, deadline)
            outcome = Outcome.ACKNOWLEDGED if acks >= members.write_quorum else Outcome.UNCERTAIN
            written = Written(outcome, last.version, acks, shard, reason if outcome is Outcome.UNCERTAIN else "")
            result[key.document_id] = Earlier(written, last.gtid)
        return result

    async def _ask(
        self, collection: Collection, shard: int, wanted: Sequence[OpKey], deadline: Deadline
    ) -> list[_Found]:
        """What the voters know of the keys; R of them at least."""
        members = collection.members[shard]
        request = shard_pb2.FindKeysRequest(
            epoch=members.epoch,
            collection=collection.name,
            shard=shard,
            keys=[shard_pb2.IdempotencyKey(document_id=key.document_id, key=key.key) for key in wanted],
        )
        tasks = [asyncio.create_task(self._find(voter, request, deadline)) for voter in members.voters]
        try:
            answers = await _quorum(tasks, members, deadline)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        if len(answers) < members.read_quorum:
            raise Unavailable(
                f"collection {collection.name!r}, shard {shard}: {len(answers)} of the {members.read_quorum} voters "
                "needed said whether the idempotency key is known; nothing was written",
                retry_ms=RETRY_MS,
                reason="SHARD_UNAVAILABLE",
                definite=True,
            )
        return [found for answer in answers for found in answer]

    async def _find(
        self, voter: ReplicaRef, request: shard_pb2.FindKeysRequest, deadline: Deadline
    ) -> list[_Found] | None:
        """What one voter knows; None when it did not answer."""
        try:
            reply = await self._links[voter.node].stub.FindKeys(request, timeout=deadline.remaining_s())
        except grpc.aio.AioRpcError:
            return None
        if reply.status != shard_pb2.REPLICA_STATUS_OK or reply.replica != voter.replica_id:
            return None
        return [
            _Found(
                OpKey(found.key.document_id, found.key.key, found.key.content),
                Gtid(found.gtid.source, found.gtid.seq),
                Version(found.version.hlc, found.version.source),
                voter.replica_id,
            )
            for found in reply.found
        ]


async def _quorum(
    tasks: Sequence[asyncio.Task[list[_Found] | None]], members: Members, deadline: Deadline
) -> list[list[_Found]]:
    """The answers of R voters, and of those that come soon after."""
    pending: set[asyncio.Task[list[_Found] | None]] = set(tasks)
    answers: list[list[_Found]] = []
    while pending:
        enough = len(answers) >= members.read_quorum
        timeout_s = deadline.at_most_ms(LINGER_S * 1_000).remaining_s() if enough else deadline.remaining_s()
        done, pending = await asyncio.wait(pending, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if not done:
            break
        answers += [answer for task in done if (answer := task.result()) is not None]
    return answers
