"""A router process around the production rounds: coalesced summaries, writes, searches."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import count

from services.quorum.clock import HybridLogicalClock
from services.quorum.coalesce import Coalescer
from services.quorum.gtid import Gtid
from services.quorum.members import Members
from services.quorum.replica import Summary
from services.quorum.rows import WriteBatch
from services.quorum.summary import SummaryRound
from services.quorum.write import WriteRound
from tests.simulation.network import Host, Network
from tests.simulation.replica import EPOCH, START_MS, SimReplica
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
        self.skew_ms = 0
        self.start()

    def start(self) -> None:
        """Boot under a new source."""
        self.up = True
        self.source = self.timeline.random.getrandbits(64)
        self.clock = HybridLogicalClock(self.source)
        self._seq = count(1)
        self._tickets = count(1)
        self._heard: dict[int, Heard] = {}
        self._lanes: dict[str, Coalescer[int]] = {name: self.new_lane() for name in self.replicas}

    def later(self, delay_us: int, action: Callable[[], None]) -> None:
        """Run `action` unless this life has ended by then."""
        life = self.life
        self.timeline.after(delay_us, lambda: action() if self.life == life else None)

    def now_ms(self) -> int:
        return START_MS + self.timeline.now_us // MS + self.skew_ms

    def new_gtid(self) -> Gtid:
        return Gtid(self.source, next(self._seq))

    def new_round(self) -> SummaryRound:
        """What collects the answers of a summary round."""
        return SummaryRound(self.members)

    def new_write(self, batch: WriteBatch) -> WriteRound:
        """What counts the acknowledgements of a batch."""
        return WriteRound(self.members, batch)

    def version_floor(self, round_: SummaryRound) -> int:
        """The clock reading that a new version must exceed."""
        return round_.hlc_max()

    def new_lane(self) -> Coalescer[int]:
        """What decides which operations a voter's next summary serves."""
        return Coalescer()

    def join(self, heard: Heard) -> int:
        """Ask every voter for a summary sent after now; `heard` is called once for each."""
        ticket = next(self._tickets)
        self._heard[ticket] = heard
        for name, lane in self._lanes.items():
            if lane.arrive(ticket):
                self._ask(name)
        return ticket

    def leave(self, ticket: int) -> None:
        """The operation has ended."""
        self._heard.pop(ticket, None)
        for lane in self._lanes.values():
            lane.forget(ticket)

    def _ask(self, name: str) -> None:
        target = self.replicas[name]

        self._lanes[name].board()

        def landed(summary: Summary | None) -> None:
            served, again = self._lanes[name].landed()
            if again:
                self.later(self.timeline.random.choice((0, 0, 2 * MS, 15 * MS)), lambda: self._ask(name))
            for ticket in served:
                heard = self._heard.get(ticket)
                if heard is not None:
                    heard(name, summary)

        self.network.call(self, target, lambda reply: reply(target.core.summary(EPOCH)), landed, SUMMARY_US)
