"""The topology record of the shard in a simulation: one place that compares and swaps it, and whoever follows it."""

from __future__ import annotations

from collections.abc import Callable

from services.quorum.shard_record import ShardRecord
from tests.simulation.network import Host, Network
from tests.simulation.timeline import MS, Timeline

WATCH_US = 80 * MS
ASK_US = 50 * MS


class RecordStore(Host):
    """Holds the record durably. Losing it stops changes of membership, nothing else."""

    def __init__(self, record: ShardRecord) -> None:
        super().__init__("records")
        self.record = record

    def start(self) -> None:
        """The record is on its disk."""
        self.up = True

    def swap(self, expected_epoch: int, record: ShardRecord) -> ShardRecord:
        """Store `record` if the stored epoch is `expected_epoch`; what is stored now."""
        if self.record.epoch == expected_epoch:
            assert record.epoch == expected_epoch + 1
            self.record = record
        return self.record


class RecordFollower:
    """What a host knows of the record. It survives the host's lives, as a file that it keeps would."""

    def __init__(
        self,
        host: Host,
        timeline: Timeline,
        network: Network,
        store: RecordStore,
        record: ShardRecord,
        on_newer: Callable[[ShardRecord], None],
    ) -> None:
        self.record = record
        self._host = host
        self._timeline = timeline
        self._network = network
        self._store = store
        self._on_newer = on_newer
        self._asking = -1

    def watch(self) -> None:
        """Ask every now and then, as long as this life of the host lasts."""
        life = self._host.life

        def turn() -> None:
            if self._host.life == life:
                self.ask()
                self._timeline.after(int(WATCH_US * (0.5 + self._timeline.random.random())), turn)

        self._timeline.after(self._timeline.random.randrange(WATCH_US), turn)

    def ask(self) -> None:
        """Read the record now, unless an answer is awaited."""
        life = self._host.life
        if self._asking == life:
            return
        self._asking = life

        def heard(record: ShardRecord | None) -> None:
            self._asking = -1
            if record is not None:
                self.told(record)

        self._network.call(self._host, self._store, lambda reply: reply(self._store.record), heard, ASK_US)

    def told(self, record: ShardRecord) -> None:
        """The host knows this record from now on, if it is newer."""
        if record.epoch > self.record.epoch:
            self.record = record
            self._on_newer(record)
