"""Keeping a replica equal to its peers: pulling what it lacks, mending what is damaged, comparing digests.

Pulls are state-based and idempotent: a peer sends the current state of every document that the wanted batches
touched, so a pull may be cut anywhere and begun again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import grpc

from observability.logs import logger
from ostraka.v1 import shard_pb2, shard_pb2_grpc
from services.quorum.gtid import GtidSet
from services.quorum.members import Members
from services.quorum.rows import PullBundle
from services.runtime.clock import SYSTEM_CLOCK, Clock
from services.runtime.deadline import Deadline
from services.shard.damage import DamagedRowError, RowName
from services.shard.engine import Engine, ReplicaFailedError
from services.shard.hosted import HostedReplica
from services.shard.pulling import join
from services.shard.store import StoreError
from services.shard.wire import WireError, bundle_from_wire, set_from_wire, set_to_wire

PULL_MS = 30_000
GOSSIP_TIMEOUT_MS = 2_000
SETTLE_S = 0.05
"""A batch on its way to all voters at once is usually here by then; only what is still missing is pulled."""
HURRY_S = 0.02
"""The least pause between two rounds."""
CATCH_UP_MS = 10_000
"""After this a replica counts as caught up even if too few peers could be reached."""
FETCHES_MAX = 8
"""Searches that pull at once; others wait and usually find that a pull before theirs brought it."""
PIECE_S = 3.0
"""A peer that sends nothing for so long is given up: it may be paused."""
PEER_MS = 1_000
"""Of a search's deadline, what one peer may take while others could be asked."""
_LOG = logger("shard")


class _GoneError(Exception):
    """The members changed, and the peer is none of them any more."""


_RECOVERABLE = (
    grpc.aio.AioRpcError,
    WireError,
    StoreError,
    DamagedRowError,
    ReplicaFailedError,
    TimeoutError,
    _GoneError,
)


@dataclass(frozen=True, slots=True)
class _Told:
    """What a peer said of itself."""

    replica_id: str
    epoch: int
    applied: GtidSet

    def votes_in(self, members: Members) -> bool:
        return self.epoch == members.epoch and members.voter(self.replica_id) is not None


class Repair:
    """Anti-entropy of one replica with its peers."""

    def __init__(
        self,
        replica: HostedReplica,
        peers: Mapping[str, shard_pb2_grpc.ShardServiceAsyncStub],
        pulls: asyncio.Semaphore,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        """`peers`: by node name, without this node. `pulls`: how many bulk pulls the node runs at once."""
        assert replica.engine is not None, "only an open replica is repaired"
        self._replica = replica
        self._engine: Engine = replica.engine
        self._peers = peers
        self._pulls = pulls
        self._heard: set[str] = set()
        self._wanted = GtidSet.EMPTY
        self._hint = asyncio.Event()
        self._caught_up = asyncio.Event()
        self._unreachable: set[str] = set()
        self._fetches = asyncio.Semaphore(FETCHES_MAX)
        self._clock = clock
        self._refreshing = asyncio.Lock()
        self.exchanged: dict[str, float] = {}
        """By the id of a voter of this epoch, when the last exchange began after which everything it had then is here.
        By id, since its node may host another replica meanwhile."""

    def follow(self, peers: Mapping[str, shard_pb2_grpc.ShardServiceAsyncStub]) -> None:
        """The members have changed. What was exchanged before says nothing of the new voters' writes."""
        self._peers = peers
        self._heard.clear()
        self._unreachable.intersection_update(peers)
        self.exchanged.clear()
        self._hint.set()

    def want(self, gtids: GtidSet) -> None:
        """Pull these soon."""
        self._wanted = self._wanted.union(gtids)
        self._hint.set()

    def hurry(self) -> None:
        """Look for damaged rows and peers' batches now rather than at the next interval."""
        self._hint.set()

    async def caught_up(self) -> None:
        """Wait until enough peers were heard and pulled from, at most CATCH_UP_MS."""
        try:
            await asyncio.wait_for(self._caught_up.wait(), CATCH_UP_MS / 1_000)
        except TimeoutError:
            self._mark_caught_up()

    async def fetch(self, want: GtidSet, holders: Sequence[str], deadline: Deadline) -> None:
        """Pull `want` from its holders, then from other peers, until it is here or everyone was asked."""
        others = [node for node in self._peers if node not in holders]
        for node in [*(name for name in holders if name in self._peers), *others]:
            missing = want.difference(self._engine.view.applied)
            if not missing or deadline.expired():
                return
            try:
                async with asyncio.timeout(deadline.remaining_s()), self._fetches:
                    missing = want.difference(self._engine.view.applied)
                    share = deadline.share(0.5).at_most_ms(PEER_MS)
                    await self._pull(node, missing, share, mending=False)
            except _RECOVERABLE as error:
                _LOG.debug("pull failed", replica=self._replica.replica_id, peer=node, error=repr(error))

    async def refresh(self, needed: int, since_s: float, deadline: Deadline) -> None:
        """Exchange with peers until with `needed` of them one has finished that began after `since_s`, or
        everyone was asked once. Callers that come together share the exchanges."""
        try:
            async with asyncio.timeout(deadline.remaining_s()), self._refreshing:
                for asked, node in enumerate(sorted(self._peers, key=self._unreachable.__contains__)):
                    if sum(began_s > since_s for began_s in self.exchanged.values()) >= needed:
                        return
                    await self._guarded(self._round(node, deadline.share(1 / (len(self._peers) - asked))))
        except TimeoutError:
            return

    async def run(self) -> None:
        """Gossip with one peer after the other until cancelled."""
        interval_s = self._replica.config.gossip_ms / 1_000
        turn = sum(self._replica.replica_id.encode())  # replicas begin at different peers
        while True:
            await self._guarded(self._mend())
            nodes = sorted(self._peers)
            if nodes:
                await self._guarded(self._round(nodes[turn % len(nodes)]))
            turn += 1
            self._judge()
            pause_s = interval_s if self._replica.caught_up else min(SETTLE_S, interval_s)
            # 0.75 to 1.25 of the interval, different for each replica and turn: nodes started together drift apart.
            await self._pause(pause_s * (0.75 + (turn * 37 % 64) / 128))

    async def _guarded(self, work: Coroutine[Any, Any, None]) -> None:
        """A defect met in one round ends neither the other half of it nor repair for good."""
        try:
            await work
        except Exception as error:
            _LOG.exception("repair round failed", error, replica=self._replica.replica_id)

    async def _pause(self, seconds: float) -> None:
        # However often someone hurries, rounds do not follow each other without end.
        await asyncio.sleep(min(HURRY_S, seconds))
        try:
            await asyncio.wait_for(self._hint.wait(), seconds)
        except TimeoutError:
            return
        finally:
            self._hint.clear()

    async def _round(self, node: str, limit: Deadline | None = None) -> None:
        """One exchange; with `limit` somebody waits for it: it neither outlasts that nor waits for what may come."""
        began_s, members = self._clock.monotonic_s(), self._replica.members
        try:
            told = await self._gossip(node, limit)
            theirs = GtidSet.EMPTY if told is None else told.applied
            if limit is None and self._replica.caught_up and theirs.difference(self._engine.view.applied):
                await asyncio.sleep(SETTLE_S)
            missing = theirs.union(self._wanted if limit is None else GtidSet.EMPTY)
            missing = missing.difference(self._engine.view.applied)
            if missing:
                async with self._pulls:
                    await self._pull(node, missing, limit or Deadline.after_ms(PULL_MS), mending=False)
            whole = told is not None and self._engine.view.applied.issuperset(theirs)
            if told is not None and whole and members is self._replica.members and told.votes_in(members):
                self.exchanged[told.replica_id] = max(began_s, self.exchanged.get(told.replica_id, began_s))
            self._wanted = self._wanted.difference(self._engine.view.applied)
            self._heard.add(node)
            self._reachable(node)
        except _RECOVERABLE as error:
            if node not in self._unreachable:
                self._unreachable.add(node)
                _LOG.warning("peer does not answer", replica=self._replica.replica_id, peer=node, error=repr(error))

    def _stub(self, node: str) -> shard_pb2_grpc.ShardServiceAsyncStub:
        if node not in self._peers:
            raise _GoneError(node)
        return self._peers[node]

    def _reachable(self, node: str) -> None:
        if node in self._unreachable:
            self._unreachable.discard(node)
            _LOG.info("peer answers again", replica=self._replica.replica_id, peer=node)

    async def _gossip(self, node: str, limit: Deadline | None) -> _Told | None:
        """What the peer has applied; None when it refused."""
        view = self._engine.view
        request = shard_pb2.GossipRequest(
            epoch=self._replica.members.epoch,
            collection=self._replica.collection,
            shard=self._replica.shard,
            replica=self._replica.replica_id,
            applied=set_to_wire(view.applied),
            digest=view.digest_bytes,
            hlc_max=view.hlc_max,
        )
        longest = Deadline.after_ms(GOSSIP_TIMEOUT_MS) if limit is None else limit.at_most_ms(GOSSIP_TIMEOUT_MS)
        reply = await self._stub(node).Gossip(request, timeout=longest.remaining_s())
        if reply.status != shard_pb2.REPLICA_STATUS_OK:
            return None
        theirs = set_from_wire(reply.applied, "applied")
        self.compare(node, theirs, reply.digest, view.applied, view.digest_bytes)
        return _Told(reply.replica, reply.epoch, theirs)

    def compare(self, node: str, theirs: GtidSet, their_digest: bytes, ours: GtidSet, our_digest: bytes) -> None:
        """Equal applied sets must mean equal live rows; anything else is an alarm."""
        if theirs != ours or their_digest == our_digest or self._engine.damaged:
            return
        self._replica.divergences += 1
        self._replica.last_divergence = f"with {node}"
        if self._replica.divergences == 1:
            _LOG.error(
                "replicas with equal applied sets differ",
                replica=self._replica.replica_id,
                peer=node,
                ours=our_digest.hex(),
                theirs=their_digest.hex(),
            )

    def _judge(self) -> None:
        replica = self._replica
        voting = {voter.node for voter in replica.members.voters if voter.replica_id != replica.replica_id}
        if len(self._heard & voting) >= min(replica.peers_needed, len(voting & self._peers.keys())):
            self._mark_caught_up()

    def _mark_caught_up(self) -> None:
        self._caught_up.set()
        if not self._replica.caught_up:
            self._replica.caught_up = True
            _LOG.info(
                "replica caught up",
                replica=self._replica.replica_id,
                collection=self._replica.collection,
                shard=self._replica.shard,
                peers_heard=len(self._heard),
            )

    async def _mend(self) -> None:
        """Fetch damaged rows and lost operations from whichever peer holds the batches that wrote them."""
        limit = Deadline.after_ms(PULL_MS)
        for node in sorted(self._peers, key=self._unreachable.__contains__):
            if self._engine.ledger.ops:
                await self._mend_from(node, self._engine.ledger.ops, "operations")
        for name in sorted(self._engine.damaged, key=str)[:64]:
            want = await asyncio.to_thread(self._written_by, name)
            if not want:  # its very name is damaged
                self._engine.ledger.doubt()
                await asyncio.wrap_future(self._engine.recheck())
                continue
            for node in sorted(self._peers, key=self._unreachable.__contains__):
                if limit.expired():
                    return
                await self._mend_from(node, want, str(name))
                if name not in self._engine.damaged:
                    _LOG.info("row mended", row=str(name), peer=node)
                    break

    async def _mend_from(self, node: str, want: GtidSet, what: str) -> None:
        try:
            await self._pull(node, want, Deadline.after_ms(PULL_MS), mending=True)
        except _RECOVERABLE as error:
            _LOG.warning("not mended", what=what, peer=node, error=repr(error))

    def _written_by(self, name: RowName) -> GtidSet:
        with self._engine.readers.lend() as reader:
            if name.ordinal < 0:  # what a damaged head says of its version means nothing
                return GtidSet.of(*reader.ops_of_document(name.document_id))
            return GtidSet.of(*reader.ops_of_version(name.version, name.document_id))

    async def _pull(self, node: str, want: GtidSet, deadline: Deadline, *, mending: bool) -> None:
        request = shard_pb2.PullRequest(
            epoch=self._replica.members.epoch,
            collection=self._replica.collection,
            shard=self._replica.shard,
            want=set_to_wire(want),
            have=set_to_wire(GtidSet.EMPTY if mending else self._engine.view.applied),
        )
        parts: list[PullBundle] = []
        call = self._stub(node).Pull(request, timeout=deadline.remaining_s())
        pieces = aiter(call)
        try:
            while True:
                async with asyncio.timeout(PIECE_S):
                    reply = await anext(pieces)
                parts.append(bundle_from_wire(reply, self._replica.dim))
                if parts[-1].covers:
                    bundle = join(parts)
                    rows = [row for document in bundle.documents for row in document.passages]
                    await asyncio.to_thread(self._engine.analyse, rows)
                    await asyncio.wrap_future(self._engine.merge(bundle, mending=mending))
                    parts = []
        except StopAsyncIteration:
            return
        finally:
            call.cancel()
