"""A change of one shard's members, driven over gRPC: a new replica learns first, then the members change by fencing.

Whatever is known beyond the topology record can be learned again, so a change that was left anywhere is ended by
running the command again or by `resume`.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from ostraka.cli.member_calls import MemberCalls, OutdatedError
from ostraka.cli.member_records import record_from_stored, record_to_store
from services.quorum.controller import CatchUp, Controller, Effect, Finished, SendFence, WriteRecord
from services.quorum.gtid import GtidSet
from services.quorum.members import ReplicaRef
from services.quorum.shard_record import Membership, ShardRecord, ShardState
from services.runtime.deadline import Deadline
from services.runtime.errors import MeshError
from services.runtime.record_store import RecordStore
from services.runtime.topology import REPLICA_ID_BYTES, shard_of

LAG_MAX = 16
"""A learner that lacks no more batches than this is promoted: the rest is pulled while the shard is frozen."""
FROZEN_S = 20.0
"""A change that has not ended by then is given up: the shard's quorum operations wait meanwhile."""
PAUSE_S = 0.05
LEARN_PAUSE_S = 0.2
SWAPS_MAX = 16
Progress = Callable[[str], None]
T = TypeVar("T")


class ChangeError(Exception):
    """The members were not changed as asked; the message says how they are now and what to do."""


@dataclass(frozen=True, slots=True)
class Shard:
    """Which shard's members."""

    collection: str
    number: int

    def __str__(self) -> str:
        return f"{self.collection}/{self.number}"


class MemberChange:
    """Changes of one shard; each method runs to its end, once."""

    def __init__(
        self, shard: Shard, store: RecordStore, calls: MemberCalls, deadline: Deadline, progress: Progress
    ) -> None:
        self._shard, self._store, self._calls = shard, store, calls
        self._deadline, self._progress = deadline, progress
        self._said = ""

    async def record(self) -> ShardRecord:
        """As it is stored now. Raises ConfigError, ChangeError."""
        try:
            return record_from_stored(shard_of(await self._store.read(), self._shard.collection, self._shard.number))
        except MeshError as error:
            raise ChangeError(f"the topology record cannot be read: {error.message}") from error
        except ValueError as error:
            raise ChangeError(f"{self._shard}: members of this shard cannot be changed: {error}") from error

    async def learner_on(self, node: str) -> ReplicaRef:
        """A learner on the node: the one that is there already, or a new and empty one. Raises ChangeError."""
        for _ in range(SWAPS_MAX):
            record = await self.record()
            known = next((learner for learner in record.members.learners if learner.node == node), None)
            if known is not None:
                self._say(f"learner {known.replica_id[:8]} on {node} goes on")
                return known
            learner = ReplicaRef(secrets.token_hex(REPLICA_ID_BYTES), node)
            grown = _or_refused(lambda: record.with_learner(learner))  # noqa: B023  # called at once
            try:
                await self._calls.host(learner)
            except MeshError as error:
                raise ChangeError(f"node {node} did not make room for a replica: {error.message}") from error
            if await self._swap(record.epoch, grown) == grown:
                self._say(f"learner {learner.replica_id[:8]} begins on {node}, epoch {grown.epoch}")
                return learner
        raise ChangeError("other controllers changed the record again and again; try once more")

    async def learned(self, learner: ReplicaRef) -> None:
        """Wait until the learner lacks little. Raises ChangeError at the deadline; it goes on learning then."""
        while True:
            voters = (await self.record()).members.voters
            known = [applied for voter in voters if (applied := await self._calls.applied(voter)) is not None]
            if known:
                require = GtidSet.EMPTY
                for applied in known:
                    require = require.union(applied)
                reached = await self._calls.catch_up(learner, require, voters, self._seconds(5.0))
                missing = len(require if reached is None else require.difference(reached))
                self._say(f"learner {learner.replica_id[:8]}: {missing} of {len(require)} batches still to pull")
                if reached is not None and missing <= LAG_MAX:
                    return
            if self._deadline.expired():
                raise ChangeError(
                    f"the learner on {learner.node} did not catch up in time{self._why()}; nothing else was changed: "
                    "the same command goes on with it, `replica remove` gives it up"
                )
            await asyncio.sleep(LEARN_PAUSE_S)

    async def change(
        self, wanted: Callable[[Membership], Membership], dead: frozenset[str] = frozenset()
    ) -> ShardRecord:
        """Fence and change the members. Raises ChangeError: the old members serve on, unless the message says else."""
        record = await self.record()
        controller = Controller(record)
        proposed = _or_refused(lambda: wanted(record.members))
        await self._enough_answer(record, proposed, dead)
        _or_refused(lambda: controller.begin(proposed, dead))
        finished = await self._drive(controller, self._deadline.at_most_ms(FROZEN_S * 1_000))
        if finished is None:
            stuck = f"{controller.progress()}{self._why()}"
            self._say("giving the change up")
            over = await self._abandoned()
            raise ChangeError(f"the change did not end in {FROZEN_S:g} s: {stuck}; {over}")
        if finished.record.members != proposed:
            raise ChangeError(
                f"another controller ended this change in epoch {finished.record.epoch}; look and try again"
            )
        return finished.record

    async def resume(self) -> ShardRecord:
        """End the change under way, whoever began it. Raises ChangeError."""
        controller = Controller(await self.record())
        controller.resume()
        finished = await self._drive(controller, self._deadline)
        if finished is None:
            raise ChangeError(
                f"the change did not end in time and the shard is still frozen: {controller.progress()}{self._why()}; "
                "`replica resume` goes on, `replica abort` returns to the old members"
            )
        return finished.record

    async def abort(self) -> ShardRecord:
        """Return to the old members. Raises ChangeError."""
        controller = Controller(await self.record())
        _or_refused(controller.abort)
        finished = await self._drive(controller, self._deadline)
        if finished is None:
            raise ChangeError("the topology record could not be written in time; the shard is still frozen")
        return finished.record

    async def _abandoned(self) -> str:
        try:
            record = await MemberChange(
                self._shard, self._store, self._calls, Deadline.after_ms(10_000), self._progress
            ).abort()
        except ChangeError as error:
            return f"THE SHARD IS STILL FROZEN ({error}): `replica resume` or `replica abort`"
        return f"the old members serve again in epoch {record.epoch}"

    async def _enough_answer(self, record: ShardRecord, proposed: Membership, dead: frozenset[str]) -> None:
        """Refuse before anything is frozen what could not be ended."""
        frozen = _or_refused(lambda: record.frozen(proposed, dead))
        voters = [voter for voter in record.members.voters if voter.replica_id not in dead]
        answers = await asyncio.gather(*(self._calls.applied(voter) for voter in voters))
        answering = sum(applied is not None for applied in answers)
        if answering < frozen.fences_needed():
            raise ChangeError(
                f"{answering} of the {frozen.fences_needed()} voters needed answer{self._why()}; nothing was changed: "
                "bring one back, or say --dead for a voter that will never answer again"
            )

    async def _drive(self, controller: Controller, deadline: Deadline) -> Finished | None:
        """Do what is to be done until the record is ACTIVE; None when that took too long."""
        while True:
            effects = controller.outstanding()
            if effects and isinstance(effects[0], Finished):
                self._say(controller.progress())
                return effects[0]
            if deadline.expired():
                return None
            await asyncio.gather(*(self._do(controller, effect, deadline) for effect in effects))
            if controller.outstanding() == effects:
                await asyncio.sleep(PAUSE_S)
            self._say(controller.progress())

    async def _do(self, controller: Controller, effect: Effect, deadline: Deadline) -> None:
        try:
            if isinstance(effect, WriteRecord):
                controller.on_record(await self._swap(effect.expected_epoch, effect.record))
            elif isinstance(effect, SendFence):
                applied = await self._calls.fence(effect.replica, effect.epoch)
                if applied is not None:
                    controller.on_fenced(effect.replica.replica_id, effect.epoch, applied)
            elif isinstance(effect, CatchUp):
                reached = await self._calls.catch_up(
                    effect.replica, effect.require, effect.holders, deadline.at_most_ms(5_000).remaining_s()
                )
                if reached is not None:
                    missing = len(effect.require.difference(reached))
                    self._say(f"{effect.replica.replica_id[:8]} on {effect.replica.node}: {missing} batches to pull")
                    controller.on_applied(effect.replica.replica_id, reached)
        except OutdatedError:
            controller.on_record(await self.record())

    async def _swap(self, expected_epoch: int, record: ShardRecord) -> ShardRecord:
        """What is stored afterwards. Raises ConfigError, ChangeError."""
        try:
            return record_from_stored(
                await self._store.swap(
                    self._shard.collection, self._shard.number, expected_epoch, record_to_store(record)
                )
            )
        except MeshError as error:
            raise ChangeError(
                f"the topology record could not be written: {error.message}; `replica list` shows whether it was"
            ) from error

    def _seconds(self, most: float) -> float:
        return max(0.1, self._deadline.at_most_ms(most * 1_000).remaining_s())

    def _why(self) -> str:
        told = "; ".join(f"node {node}: {problem}" for node, problem in sorted(self._calls.problems.items()))
        return f" ({told})" if told else ""

    def _say(self, what: str) -> None:
        if what != self._said:
            self._said = what
            self._progress(f"{self._shard}: {what}")


def quorums(members: Membership, voters: int, read_quorum: int, write_quorum: int) -> tuple[int, int]:
    """(R, W) for `voters` voters: as given, 0 meaning as now, raised or lowered as little as the number asks for."""
    read = read_quorum or min(members.read_quorum, voters)
    write = write_quorum or min(members.write_quorum, voters)
    if not write_quorum:
        write = min(voters, max(write, voters + 1 - read))
    if not read_quorum:
        read = min(voters, max(read, voters + 1 - write))
    return read, write


def is_frozen(record: ShardRecord) -> bool:
    """Whether a change is under way."""
    return record.state is ShardState.FROZEN


def _or_refused(attempt: Callable[[], T]) -> T:
    try:
        return attempt()
    except ValueError as error:
        raise ChangeError(f"refused, nothing was changed: {error}") from error
