"""One read of several shards, driven to its end: legs, hedges, retries and summary rounds.

What counts is decided per shard by `services.quorum.search`; this module sends, and gathers the shards' legs
into one call per node. Callbacks feed the decisions and the operation's own task sleeps until the last shard
is decided, so a read that goes well costs one task switch however many replicas took part.

At QUORUM a session token adds nothing to what is required: what its holder wrote was acknowledged, and what
it saw of unacknowledged writes may have died with its only holder, which must not make a quorum read fail.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import Generic, TypeVar

from opentelemetry.trace import Span

from observability import names, spans
from services.quorum.gtid import GtidSet
from services.quorum.members import ReplicaRef
from services.quorum.search import Accept, FreshRound, Leg, QuorumSearch, Wait
from services.quorum.status import ReplicaStatus
from services.quorum.vote import Vote
from services.router.catalogue import Collection
from services.router.leg_span import LegSpan
from services.router.read_state import Call, ShardState
from services.router.read_types import Freshness, LegReply, LegRequest, LegSender, ReadTools, Reply, ShardOutcome
from services.router.summary_rounds import Ticket, Told
from services.runtime.deadline import Deadline
from services.runtime.errors import DeadlineExceeded, MeshError, Unavailable

# A shard without a quorum is tried again this long before the read says so: a node that just came back is
# reconnected to within half a second.
PERSIST_S = 1.5
# ... but never longer than this share of the deadline, so that partial answers and reasons still arrive.
PERSIST_SHARE = 0.6
RETRY_PAUSE_S = 0.05
RETRY_PAUSE_S_MAX = 0.4

T = TypeVar("T")


class QuorumRead(Generic[T]):
    """One read; `run` once."""

    def __init__(
        self,
        collection: Collection,
        shards: Iterable[int],
        freshness: Freshness,
        session: Mapping[tuple[str, int], GtidSet],
        tools: ReadTools,
        sender: LegSender[T],
        span_name: str,
        parent: Span,
        deadline: Deadline,
        max_staleness_ms: int = 0,
        *,
        patient: bool = True,
    ) -> None:
        """`max_staleness_ms`: at BOUNDED, else 0. `patient`: go on trying also when members seem to have changed."""
        self._patient = patient
        self._max_staleness_ms = max_staleness_ms
        self._collection, self._freshness, self._session, self._tools = collection, freshness, session, tools
        self._sender, self._span_name, self._parent, self._deadline = sender, span_name, parent, deadline
        self._shards: dict[int, ShardState[T]] = {shard: ShardState(shard, self._new_search(shard)) for shard in shards}
        self._calls: list[Call[T]] = []
        self._timers: set[asyncio.TimerHandle] = set()
        self._ticket: Ticket | None = None
        self._quorum_span: Span | None = None
        self._patience_over = False
        self._impatient = False
        self._pause_s = RETRY_PAUSE_S
        self._timed_out = False

    async def run(self) -> list[ShardOutcome[T]]:
        """Read every shard; one that cannot be read has no reply but a reason. Raises ResourceExhausted."""
        self._loop = asyncio.get_running_loop()
        self._done: asyncio.Future[None] = self._loop.create_future()
        remaining_s = self._deadline.remaining_s()
        self._persist_until_s = self._now() + min(PERSIST_S, remaining_s * PERSIST_SHARE)
        self._later(remaining_s, self._expire)
        try:
            self._join()
            self._send({number: shard.search.first() for number, shard in self._shards.items()})
            await self._done
        finally:
            self._close()
        return [self._outcome(shard) for shard in self._shards.values()]

    def _outcome(self, shard: ShardState[T]) -> ShardOutcome[T]:
        heard = shard.search.round.answered if shard.search.round is not None else len(shard.answers)
        reason = "" if shard.accepted else shard.reason or "no replica answered"
        return ShardOutcome(
            shard.number,
            shard.accepted,
            heard,
            shard.hedges + shard.search.hedges,
            shard.retries + shard.search.retries,
            reason,
            shard.search.round,
            shard.moved,
        )

    def _new_search(self, shard: int) -> QuorumSearch:
        members = self._collection.members[shard]
        hosts = {voter.node: voter for voter in members.voters}
        further = {learner.node: learner for learner in self._collection.learners.get(shard, ())}
        ranked = self._tools.book.ranked(self._now())
        # A learner may still be empty: whoever asks for little had better be answered by a voter.
        order: tuple[ReplicaRef, ...] = (
            *(hosts[node] for node in ranked if node in hosts),
            *(further[node] for node in ranked if node in further and node not in hosts),
        )
        require = None
        if self._freshness in (Freshness.ONE, Freshness.BOUNDED):
            require = GtidSet.EMPTY
        elif self._freshness is Freshness.SESSION:
            require = self._session.get((self._collection.name, shard), GtidSet.EMPTY)
        return QuorumSearch(members, order, require)

    def _send(self, legs: Mapping[int, Leg]) -> None:
        """Send the shards' legs, one call per node and role."""
        grouped: dict[tuple[str, str], dict[int, Leg]] = {}
        for number, leg in legs.items():
            grouped.setdefault((leg.replica.node, leg.role), {})[number] = leg
        for (node, role), taken in grouped.items():
            self._call(node, role, taken)

    def _call(self, node: str, role: str, legs: Mapping[int, Leg]) -> None:
        call: Call[T] = Call(
            node,
            self._now(),
            {
                number: (
                    leg,
                    self._shards[number].search,
                    LegSpan(self._span_name, node, number, role, self._parent),
                )
                for number, leg in legs.items()
            },
            set(legs),
        )
        request = LegRequest(
            node,
            {number: leg.require for number, leg in legs.items()},
            tuple(dict.fromkeys(holder for leg in legs.values() for holder in leg.holders)),
            role,
            {number: span.traceparent for number, (_, _, span) in call.legs.items()},
            self._deadline.remaining_s(),
            self._max_staleness_ms,
            any(self._shards[number].refresh for number in legs),
        )
        self._tools.budget.earn()
        self._tools.book.sent(node)
        self._calls.append(call)
        call.future = self._sender(request)
        call.future.add_done_callback(lambda future: self._on_call(call, future))
        patience_s = self._tools.pace.hedge_after_s(self._tools.limits.leg_hedge_ms / 1_000)
        if any(request.require.values()):
            patience_s += self._tools.limits.search_wait_ms / 1_000
        call.timer = self._later(patience_s, lambda: self._on_slow(call))

    def _on_slow(self, call: Call[T]) -> None:
        """The node has not answered in time: ask another replica too, if that is affordable."""
        waiting = [number for number in sorted(call.open) if self._shards[number].accepted is None]
        if self._done.done() or not waiting:
            return
        self._tools.book.silent(call.node, self._now(), since_s=call.sent_s)
        if not self._tools.budget.spend():
            return
        hedges = {number: self._shards[number].search.hedge() for number in waiting}
        self._send({number: leg for number, leg in hedges.items() if leg is not None})

    def _on_call(self, call: Call[T], future: asyncio.Future[Mapping[int, LegReply[T]]]) -> None:
        self._tools.book.released(call.node)
        if call.timer is not None:
            call.timer.cancel()
            self._timers.discard(call.timer)
        if future.cancelled():
            return
        error = future.exception()
        if self._done.done():
            return
        if error is None:
            self._tools.book.heard(call.node, self._now())
            self._tools.pace.observe(self._now() - call.sent_s)
            replies: Mapping[int, LegReply[T]] = future.result()
            for number in sorted(call.open):
                self._on_reply(call, number, replies.get(number))
        elif isinstance(error, MeshError):
            if isinstance(error, (Unavailable, DeadlineExceeded)):
                self._tools.book.silent(call.node, self._now())
            for number in sorted(call.open):
                self._on_failure(call, number, error.message, error.code.name)
        else:
            self._done.set_exception(error)
            return
        touched = sorted(call.open)
        call.open.clear()
        self._decide(touched)

    def _on_reply(self, call: Call[T], number: int, reply: LegReply[T] | None) -> None:
        leg, search, span = call.legs[number]
        shard = self._shards[number]
        if reply is None or reply.view.replica_id != leg.replica.replica_id:
            problem = reply.problem if reply is not None else ""
            shard.moved = shard.moved or reply is None or reply.view.status is not ReplicaStatus.FAILED
            self._on_failure(call, number, problem or "another replica than expected answered", "UNKNOWN_REPLICA")
            return
        view = reply.view
        status = view.status if reply.value is not None or view.status is not ReplicaStatus.OK else ReplicaStatus.FAILED
        usable = None
        if search is shard.search:
            usable = search.leg_answered(
                view.replica_id, status, view.applied, view.hlc_max, leg.require, epoch=view.epoch
            )
        if usable is None or reply.value is None:
            shard.reason = f"node {call.node}: {reply.problem or status.name}"
            shard.refresh = shard.refresh or status is ReplicaStatus.TOO_STALE
            span.end(
                names.OUTCOME_ERROR if status is not ReplicaStatus.OK else names.OUTCOME_LOST,
                view.replica_id,
                "" if status is ReplicaStatus.OK else status.name,
            )
            return
        assert usable == len(shard.answers), "answers are numbered as they come"
        shard.answers.append((Reply(call.node, view.replica_id, view.applied, reply.value), span))

    def _on_failure(self, call: Call[T], number: int, message: str, code: str) -> None:
        leg, search, span = call.legs[number]
        span.end(names.OUTCOME_ERROR, error=code)
        self._shards[number].reason = f"node {call.node}: {message}"
        if search is self._shards[number].search:
            search.leg_failed(leg.replica.replica_id, f"node {call.node}: {message}")
            self._shards[number].short_of_legs = True

    def _join(self) -> None:
        """Take part in a summary round that is sent from now on."""
        if self._freshness not in (Freshness.QUORUM, Freshness.LINEARIZABLE):
            return
        self._leave()
        self._patience_over = self._impatient = False
        self._quorum_span = spans.start_span(names.SPAN_QUORUM_SUMMARY, parent=self._parent)
        self._ticket = self._tools.rounds.join(self._collection, self._on_summary, self._quorum_span)

    def _on_summary(self, node: str, told: Told | None) -> None:
        if self._done.done():
            return
        touched = []
        for number, shard in self._shards.items():
            replica = self._collection.replica_of.get((number, node))
            if replica is None or shard.accepted is not None or shard.resting:
                continue
            summary = told.get(number) if told is not None else None
            if summary is None or summary.replica_id != replica:
                shard.search.summary_failed(replica)
                shard.moved = shard.moved or (summary is not None and summary.status is not ReplicaStatus.FAILED)
            else:
                shard.moved = shard.moved or summary.status is ReplicaStatus.STALE_EPOCH
                shard.search.summary(summary)
            touched.append(number)
        self._decide(touched)

    def _decide(self, numbers: Iterable[int]) -> None:
        """Do what is to be done for these shards now that something is known of them."""
        legs: dict[int, Leg] = {}
        fresh: list[int] = []
        for number in numbers:
            shard = self._shards[number]
            if shard.accepted is not None or shard.given_up or shard.resting or self._may_get_cheaper(shard):
                continue
            decision = shard.search.decide()
            if isinstance(decision, Accept):
                self._accept(shard, decision.answer)
            elif isinstance(decision, Leg):
                self._note_behind(shard, decision)
                legs[number] = decision
            elif isinstance(decision, FreshRound):
                fresh.append(number)
            elif not isinstance(decision, Wait):
                shard.reason = shard.reason or decision.reason
                self._rest(shard)
            elif shard.short_of_legs and not shard.answers and (hedge := shard.search.hedge()) is not None:
                # Another leg is under way, so the decision is to wait for it; but it may be the slow one.
                legs[number] = hedge
            shard.short_of_legs = False
        self._close_quorum_span()
        if legs:
            self._send(legs)
        for number in fresh:
            self._shards[number].search.begin_round()
        if fresh:
            self._rejoin()
        self._finish_if_decided()

    def _may_get_cheaper(self, shard: ShardState[T]) -> bool:
        """What was answered lacks something, but a voter still to answer may show that it is not required."""
        current = shard.search.round
        if current is None or self._patience_over or not shard.answers:
            return False
        if current.vote is not Vote.WON or current.complete:
            return False
        require = current.require()
        if any(reply.view.issuperset(require) for reply, _ in shard.answers):
            return False
        if not self._impatient:
            self._impatient = True
            self._later(self._tools.limits.summary_hedge_ms / 1_000, self._on_impatient)
        return True

    def _on_impatient(self) -> None:
        self._patience_over = True
        if not self._done.done():
            self._decide(list(self._shards))

    def _note_behind(self, shard: ShardState[T], leg: Leg) -> None:
        if leg.require:
            for reply, _ in shard.answers:
                if not reply.view.issuperset(leg.require):
                    self._tools.book.behind(reply.node, self._now())

    def _rejoin(self) -> None:
        """A new round serves every open shard; one whose round was still good may only gain by it."""
        try:
            self._join()
        except MeshError as error:
            if not self._done.done():
                self._done.set_exception(error)

    def _rest(self, shard: ShardState[T]) -> None:
        """No quorum for this shard now: begin again after a pause, or give it up."""
        if self._now() + self._pause_s >= self._persist_until_s or (shard.moved and not self._patient):
            shard.given_up = True
            return
        shard.resting = True
        self._later(self._pause_s, lambda: self._wake(shard))
        self._pause_s = min(2 * self._pause_s, RETRY_PAUSE_S_MAX)

    def _wake(self, shard: ShardState[T]) -> None:
        if self._done.done():
            return
        shard.resting = False
        shard.retire()
        for _, span in shard.answers:
            span.end(names.OUTCOME_LOST)
        shard.answers.clear()
        shard.search = self._new_search(shard.number)
        self._rejoin()
        leg = shard.search.first()
        shard.retries += 1
        self._send({shard.number: Leg(leg.replica, leg.require, leg.holders, names.LEG_RETRY)})

    def _accept(self, shard: ShardState[T], answer: int) -> None:
        for index, (reply, span) in enumerate(shard.answers):
            span.end(names.OUTCOME_WON if index == answer else names.OUTCOME_LOST, reply.replica)
        shard.accepted = shard.answers[answer][0]

    def _finish_if_decided(self) -> None:
        if not self._done.done() and all(
            shard.accepted is not None or shard.given_up for shard in self._shards.values()
        ):
            self._done.set_result(None)

    def _expire(self) -> None:
        self._timed_out = True
        for shard in self._shards.values():
            if shard.accepted is None:
                shard.reason = shard.reason or "the deadline passed before a replica answered"
        if not self._done.done():
            self._done.set_result(None)

    def _close(self) -> None:
        """Nothing of this read goes on; every span ends with an outcome."""
        if not self._done.done():
            self._done.cancel()
        for timer in self._timers:
            timer.cancel()
        self._leave()
        abandoned = names.OUTCOME_TIMEOUT if self._timed_out else names.OUTCOME_CANCELLED
        for call in self._calls:
            for number in call.open:
                call.legs[number][2].end(abandoned)
            call.open.clear()
            if call.future is not None and not call.future.done():
                call.future.cancel()
        for shard in self._shards.values():
            if shard.accepted is None:
                for reply, span in shard.answers:
                    span.end(names.OUTCOME_LOST, reply.replica)

    def _leave(self) -> None:
        if self._ticket is not None:
            self._ticket.leave()
            self._ticket = None
        self._close_quorum_span(force=True)

    def _close_quorum_span(self, *, force: bool = False) -> None:
        """The span ends when every shard's vote is decided, or with the round."""
        if self._quorum_span is None:
            return
        rounds = [shard.search.round for shard in self._shards.values()]
        if force or all(current is None or current.vote is not Vote.PENDING for current in rounds):
            spans.end_span(self._quorum_span)
            self._quorum_span = None

    def _later(self, delay_s: float, act: Callable[[], None]) -> asyncio.TimerHandle:
        handle = self._loop.call_later(delay_s, act)
        self._timers.add(handle)
        return handle

    def _now(self) -> float:
        return self._tools.clock.monotonic_s()
