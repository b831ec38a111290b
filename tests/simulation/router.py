"""A router process around the production rounds: coalesced summaries, writes, searches."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import count

from services.quorum.clock import HybridLogicalClock
from services.quorum.coalesce import Coalescer
from services.quorum.gtid import Gtid
from services.quorum.members import Members, ReplicaRef
from services.quorum.replica import Summary
from services.quorum.rows import WriteBatch
from services.quorum.shard_record import ShardRecord, ShardState
from services.quorum.summary import SummaryRound
from services.quorum.write import WriteRound
from tests.simulation.network import Host, Network
from tests.simulation.record_store import RecordFollower, RecordStore
from tests.simulation.replica import START_MS, SimReplica
from tests.simulation.timeline import MS, Timeline

SUMMARY_US = 50 * MS

Heard = Callable[[str, Summary | None], None]


class SimRouter(Host):
    """One router: a new boot id in every life, a wall clock that may be wrong, nothing on disk."""

    def __init__(
        self, name: str, timeline: Timeline, network: Network, members: Members, replicas: Mapping[str, SimReplica]
    ) -> None:
        super().__init__(name)
        self.timeline = timeline
        self.network = network
        self.members = members
        self.replicas = replicas
        self.learners: tuple[ReplicaRef, ...] = ()
        self.skew_ms = 0
        self._follower: RecordFollower | None = None
        self.start()

    def follow(self, store: RecordStore, record: ShardRecord) -> None:
        """Know the shard's record and keep asking for newer ones."""
        self._follower = RecordFollower(self, self.timeline, self.network, store, record, self.on_record)
        self.on_record(record)
        self._follower.watch()

    def told(self, record: ShardRecord) -> None:
        """Read this record now."""
        assert self._follower is not None
        self._follower.told(record)

    def on_record(self, record: ShardRecord) -> None:
        """A newer record was read; while it is FROZEN, quorum operations wait for the next."""
        self.learners = record.members.learners
        if record.state is ShardState.ACTIVE:
            self.members = record.quorum_members()

    @property
    def frozen(self) -> bool:
        """Whether the newest record known is FROZEN."""
        return self._follower is not None and self._follower.record.state is ShardState.FROZEN

    def refresh(self) -> None:
        """A replica is in another epoch: ask for the record now."""
        if self._follower is not None:
            self._follower.ask()

    def start(self) -> None:
        """Boot under a new source."""
        self.up = True
        self.source = self.timeline.random.getrandbits(64)
        self.clock = HybridLogicalClock(self.source)
        self._seq = count(1)
        self._tickets = count(1)
        self._heard: dict[int, Heard] = {}
        self._lanes: dict[str, Coalescer[int]] = {}
        if self._follower is not None:
            self._follower.watch()

    def later(self, delay_us: int, action: Callable[[], None]) -> None:
        """Run `action` unless this life has ended by then."""
        life = self.life
        self.timeline.after(delay_us, lambda: action() if self.life == life else None)

    def now_ms(self) -> int:
        return START_MS + self.timeline.now_us // MS + self.skew_ms

    def new_gtid(self) -> Gtid:
        return Gtid(self.source, next(self._seq))

    def new_round(self, members: Members) -> SummaryRound:
        """What collects the answers of a summary round."""
        return SummaryRound(members)

    def new_write(self, members: Members, batch: WriteBatch) -> WriteRound:
        """What counts the acknowledgements of a batch."""
        return WriteRound(members, batch)

    def held_by(self, members: Members) -> int:
        """How many voters must hold what a LINEARIZABLE lookup returns."""
        return members.write_quorum

    def version_floor(self, round_: SummaryRound) -> int:
        """The clock reading that a new version must exceed."""
        return round_.hlc_max()

    def new_lane(self) -> Coalescer[int]:
        """What decides which operations a voter's next summary serves."""
        return Coalescer()

    def join(self, members: Members, heard: Heard) -> int:
        """Ask every voter for a summary sent after now; `heard` is called once for each."""
        ticket = next(self._tickets)
        self._heard[ticket] = heard
        for voter in members.voters:
            lane = self._lanes.setdefault(voter.replica_id, self.new_lane())
            if lane.arrive(ticket):
                self._ask(voter.replica_id)
        return ticket

    def leave(self, ticket: int) -> None:
        """The operation has ended."""
        self._heard.pop(ticket, None)
        for lane in self._lanes.values():
            lane.forget(ticket)

    def _ask(self, name: str) -> None:
        target, epoch = self.replicas[name], self.members.epoch
        self._lanes[name].board()

        def landed(summary: Summary | None) -> None:
            if summary is not None and summary.epoch > self.members.epoch:
                self.refresh()
            served, again = self._lanes[name].landed()
            if again:
                self.later(self.timeline.random.choice((0, 0, 2 * MS, 15 * MS)), lambda: self._ask(name))
            for ticket in served:
                heard = self._heard.get(ticket)
                if heard is not None:
                    heard(name, summary)

        self.network.call(self, target, lambda reply: reply(target.on_summary(epoch)), landed, SUMMARY_US)
