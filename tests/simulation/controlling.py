"""Controllers around the production `Controller`: they change the members, crash midway, and resume."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from services.quorum.controller import CatchUp, Controller, Effect, Finished, SendFence, WriteRecord
from services.quorum.gtid import GtidSet
from services.quorum.shard_record import Membership, ShardRecord, ShardState
from services.quorum.status import ReplicaStatus
from tests.simulation.network import Host, Network
from tests.simulation.record_store import RecordStore
from tests.simulation.replica import SimReplica
from tests.simulation.timeline import MS, Timeline

STEP_US = 30 * MS
CALL_US = 60 * MS
PATIENCE_US = 600 * MS
"""How long a controller tries; then it leaves the record as it is, for whoever comes next."""

Plan = Callable[[ShardRecord], tuple[Membership, frozenset[str]] | None]
"""Proposed members and the voters vouched for as dead; None: nothing to change."""


class SimController(Host):
    """One controller. Subclasses in `mutants` break single steps."""

    controller_type: type[Controller] = Controller

    def __init__(
        self, name: str, timeline: Timeline, network: Network, store: RecordStore, replicas: Mapping[str, SimReplica]
    ) -> None:
        super().__init__(name)
        self.timeline = timeline
        self.network = network
        self.store = store
        self.replicas = replicas
        self.changes = 0
        """Records brought to ACTIVE by this controller."""
        self._controller: Controller | None = None
        self._turn = 0
        self._sent: set[Effect] = set()
        """What was done since the last step; the same again waits for the next."""

    def start(self) -> None:
        """A new life knows nothing."""
        self.up = True
        self._controller = None

    @property
    def busy(self) -> bool:
        """Whether a change is under way here."""
        return self._controller is not None

    def change(self, plan: Plan, *, abort: bool = False) -> None:
        """Read the record, then begin what `plan` says, or resume (`abort`: give up) what is under way."""
        if not self.up or self.busy:
            return

        def read(record: ShardRecord | None) -> None:
            if record is not None and not self.busy:
                self._begin(record, plan, abort)

        self.network.call(self, self.store, lambda reply: reply(self.store.record), read, CALL_US)

    def replace_record(self, change: Callable[[ShardRecord], ShardRecord | None]) -> None:
        """Read the record and write another that needs no fence."""

        def read(record: ShardRecord | None) -> None:
            changed = None if record is None or record.state is ShardState.FROZEN else change(record)
            if record is not None and changed is not None:
                epoch = record.epoch
                self.network.call(
                    self, self.store, lambda reply: reply(self.store.swap(epoch, changed)), _ignore, CALL_US
                )

        self.network.call(self, self.store, lambda reply: reply(self.store.record), read, CALL_US)

    def _begin(self, record: ShardRecord, plan: Plan, abort: bool) -> None:
        controller = self.controller_type(record)
        try:
            if record.state is ShardState.FROZEN:
                effects = controller.abort() if abort else controller.resume()
            else:
                planned = plan(record)
                if planned is None:
                    return
                effects = controller.begin(*planned)
        except ValueError:  # it cannot be made safely now
            return
        self._controller = controller
        self._sent.clear()
        self._turn += 1
        turn, life = self._turn, self.life
        self._perform(effects)
        self.timeline.after(STEP_US, lambda: self._step(turn, life, self.timeline.now_us + PATIENCE_US))

    def _step(self, turn: int, life: int, until_us: int) -> None:
        """Repeat what has not happened yet."""
        if self.life != life or self._turn != turn or self._controller is None:
            return
        if self.timeline.now_us >= until_us:
            self._controller = None
            return
        self._sent.clear()
        self._perform(self._controller.outstanding())
        self.timeline.after(STEP_US, lambda: self._step(turn, life, until_us))

    def _perform(self, effects: tuple[Effect, ...]) -> None:
        for effect in effects:
            if self._controller is None:
                return
            if effect in self._sent:
                continue
            self._sent.add(effect)
            if isinstance(effect, WriteRecord):
                self._write(self._controller, effect)
            elif isinstance(effect, SendFence):
                self._fence(self._controller, effect)
            elif isinstance(effect, CatchUp):
                self._catch_up(self._controller, effect)
            elif isinstance(effect, Finished):
                self.changes += effect.by_this
                self._controller = None

    def _write(self, controller: Controller, effect: WriteRecord) -> None:
        def stored(record: ShardRecord | None) -> None:
            if record is not None and self._controller is controller:
                self._perform(controller.on_record(record))

        self.network.call(
            self,
            self.store,
            lambda reply: reply(self.store.swap(effect.expected_epoch, effect.record)),
            stored,
            CALL_US,
        )

    def _fence(self, controller: Controller, effect: SendFence) -> None:
        name, target = effect.replica.replica_id, self.replicas[effect.replica.replica_id]

        def fenced(answer: tuple[ReplicaStatus, GtidSet] | None) -> None:
            if answer is None or self._controller is not controller:
                return
            status, applied = answer
            if status is ReplicaStatus.OK:
                self._perform(controller.on_fenced(name, effect.epoch, applied))
            else:
                self._reread(controller)

        self.network.call(self, target, lambda reply: target.on_fence(effect.epoch, reply), fenced, CALL_US)

    def _reread(self, controller: Controller) -> None:
        def read(record: ShardRecord | None) -> None:
            if record is not None and self._controller is controller:
                self._perform(controller.on_record(record))

        self.network.call(self, self.store, lambda reply: reply(self.store.record), read, CALL_US)

    def _catch_up(self, controller: Controller, effect: CatchUp) -> None:
        name, target = effect.replica.replica_id, self.replicas[effect.replica.replica_id]
        holders = [holder.replica_id for holder in effect.holders]

        def caught_up(applied: GtidSet | None) -> None:
            if applied is not None and self._controller is controller:
                self._perform(controller.on_applied(name, applied))

        self.network.call(
            self, target, lambda reply: target.on_catch_up(effect.require, holders, reply), caught_up, CALL_US
        )


def _ignore(_: object) -> None:
    """Whether it was stored is told by the record itself."""
