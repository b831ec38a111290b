"""What happens to the members of a shard in a simulation: voters added, removed, replaced, disks lost, learners."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count

from services.quorum.members import ReplicaRef
from services.quorum.shard_record import (
    Membership,
    ShardRecord,
    ShardState,
    with_added,
    with_removed,
    with_replaced,
)
from tests.simulation.controlling import SimController
from tests.simulation.faults import Fault, Nemesis
from tests.simulation.history import History
from tests.simulation.memory_store import DurableRows
from tests.simulation.network import Host, Network
from tests.simulation.record_store import RecordStore
from tests.simulation.replica import SimReplica
from tests.simulation.router import SimRouter
from tests.simulation.timeline import MS, Timeline

LEARNERS_MAX = 2
RESUME_US = 150 * MS


class World:
    """Every replica that ever was, by id, and the record that says which of them are members."""

    def __init__(
        self, timeline: Timeline, network: Network, history: History, kind: type[SimReplica], record: ShardRecord
    ) -> None:
        self._timeline, self._network, self._history, self._kind = timeline, network, history, kind
        self.store = RecordStore(record)
        self.replicas: dict[str, SimReplica] = {}
        self._numbers = count()
        for _ in record.members.all():
            self._make()
        for replica in self.replicas.values():
            replica.follow(self.store, record, self.replicas)

    def spawn(self, snapshot: DurableRows | None = None) -> SimReplica:
        """A replica that was never there, empty or with the rows of a snapshot."""
        replica = self._make()
        replica.joined = False
        if snapshot is not None:
            replica.restored = True
            replica.durable.copy_rows(snapshot)
        replica.follow(self.store, self.store.record, self.replicas)
        return replica

    def members(self) -> list[SimReplica]:
        """The members that the stored record names."""
        return [self.replicas[name] for name in sorted(self.store.record.members.ids())]

    def _make(self) -> SimReplica:
        name = f"r{next(self._numbers)}"
        replica = self._kind(name, self._timeline, self._network, self._history)
        self.replicas[name] = replica
        return replica


class MemberNemesis(Nemesis):
    """The faults of `Nemesis`, and changes of membership that they hit."""

    def __init__(
        self,
        timeline: Timeline,
        network: Network,
        world: World,
        routers: Sequence[SimRouter],
        controllers: Sequence[SimController],
        until_us: int,
    ) -> None:
        self._members = world.members()
        super().__init__(timeline, network, self._members, routers, until_us)
        self._world = world
        self._controllers = controllers
        self._snapshots: list[DurableRows] = []
        self._restless = False
        """Whether members change in this seed."""

    def begin(self) -> None:
        """Some seeds keep their members: what only stability shows must be seen too."""
        self._restless = self._timeline.random.random() < 0.8
        super().begin()
        if self._restless:
            self._resume()

    def faults(self) -> Sequence[Fault]:
        """What may strike."""
        usual = (*super().faults(), self._tear)
        if not self._restless:
            return usual
        changes: tuple[Fault, ...] = (
            self._replace,
            self._replace,
            self._add_or_remove,
            self._learner,
            self._take_snapshot,
            self._lose_disk,
            self._crash_controller,
            self._abort,
            self._hold_router,
        )
        return (*usual, *changes)

    def hosts(self) -> list[Host]:
        """Whom a partition may part."""
        return [*super().hosts(), *self._controllers, self._world.store]

    def _tear(self) -> None:
        """A crash right at the next commit, which is durable or not."""
        replica = self._pick()
        if replica.up:
            replica.tear = True
            self._timeline.after(self._a_while(), lambda: self._restart(replica))

    def _pick(self) -> SimReplica:
        """A member of the record, so that faults hit those that count."""
        self._replicas = self._world.members()
        return self._timeline.random.choice(self._replicas)

    def _idle(self) -> SimController | None:
        idle = [controller for controller in self._controllers if controller.up and not controller.busy]
        return self._timeline.random.choice(idle) if idle else None

    def _change(self, plan: _Planner) -> None:
        controller = self._idle()
        if controller is not None:
            controller.change(plan)

    def _replace(self) -> None:
        self._change(_Planner(self._world, self._timeline, "replace"))

    def _add_or_remove(self) -> None:
        self._change(_Planner(self._world, self._timeline, self._timeline.random.choice(("add", "remove"))))

    def _learner(self) -> None:
        """One more learner, empty or from a snapshot; or one fewer."""
        controller, random = self._idle(), self._timeline.random
        if controller is None:
            return
        if len(self._world.store.record.members.learners) >= LEARNERS_MAX:
            self._change(_Planner(self._world, self._timeline, "remove learner"))
            return
        snapshot = random.choice(self._snapshots) if self._snapshots and random.random() < 0.6 else None
        later_us = random.choice((0, 0, 200 * MS))
        replica = self._world.spawn(snapshot)
        ref = ReplicaRef(replica.name, replica.name)
        self._timeline.after(
            later_us,
            lambda: controller.replace_record(
                lambda record: record.with_learner(ref) if ref.replica_id not in record.removed else None
            ),
        )

    def _take_snapshot(self) -> None:
        """What one member has on its disk now, for a learner that comes later."""
        snapshot = DurableRows()
        snapshot.copy_rows(self._pick().durable)
        self._snapshots.append(snapshot)

    def _lose_disk(self) -> None:
        """A voter is gone for good with its disk. One at a time: N - W of them may be missed, no more."""
        replica = self._pick()
        if self._lost() or (
            self._world.store.record.state is ShardState.FROZEN and self._timeline.random.random() < 0.8
        ):
            return
        replica.gone = True
        replica.die()

    def _lost(self) -> frozenset[str]:
        return frozenset(replica.name for replica in self._world.members() if replica.gone)

    def _crash_controller(self) -> None:
        controller = self._timeline.random.choice(self._controllers)
        if controller.up:
            controller.die()
            self._timeline.after(self._a_while(), lambda: None if controller.up else controller.start())

    def _hold_router(self) -> None:
        """What one router sends takes long, and is old when it arrives."""
        router = self._timeline.random.choice(self._routers)
        self._network.late_us[router.name] = 900 * MS

        def release() -> None:
            self._network.late_us.pop(router.name, None)

        self._timeline.after(self._a_while(), release)

    def _abort(self) -> None:
        controller = self._idle()
        if controller is not None:
            controller.change(lambda record: None, abort=True)

    def _resume(self) -> None:
        """Every now and then somebody looks after a change that was left, and after voters that are gone."""
        controller = self._idle()
        if controller is not None:
            stuck = self._world.store.record.state is ShardState.FROZEN and bool(self._unfenceable())
            controller.change(_Planner(self._world, self._timeline, "mend"), abort=stuck)
        self._timeline.after(int(RESUME_US * (0.5 + self._timeline.random.random())), self._resume)

    def _unfenceable(self) -> frozenset[str]:
        """Members that are gone and that the change under way still counts on."""
        record = self._world.store.record
        coming = {voter.replica_id for voter in record.proposed.voters} if record.proposed else set()
        gone = {name for name, replica in self._world.replicas.items() if replica.gone}
        return frozenset(gone & (self._lost() | coming) - record.dead)

    def heal(self) -> None:
        """Everything works again; what is gone is replaced by the controllers, which go on."""
        self._replicas = [replica for replica in self._world.replicas.values() if not replica.gone]
        super().heal()
        for controller in self._controllers:
            if not controller.up:
                controller.start()
        self._world.store.up = True
        if not self._restless:
            self._resume()

    def settled(self) -> bool:
        """No change under way, nobody missing."""
        return self._world.store.record.state is ShardState.ACTIVE and not self._lost()


class _Planner:
    """Chooses the members that follow a record."""

    def __init__(self, world: World, timeline: Timeline, kind: str) -> None:
        self._world, self._timeline, self._kind = world, timeline, kind

    def __call__(self, record: ShardRecord) -> tuple[Membership, frozenset[str]] | None:
        members = record.members
        voters = [voter.replica_id for voter in members.voters]
        gone = [name for name in voters if self._world.replicas[name].gone]
        if gone:
            return with_replaced(members, gone[0], self._successor(members)), frozenset(gone)
        gone_learners = [ref.replica_id for ref in members.learners if self._world.replicas[ref.replica_id].gone]
        if gone_learners:
            return self._without(members, gone_learners[0]), frozenset()
        if self._kind == "replace":
            return with_replaced(members, self._timeline.random.choice(voters), self._successor(members)), frozenset()
        if self._kind == "add" and len(voters) < 5:
            read, write = _majorities(len(voters) + 1)
            return with_added(members, self._successor(members), read_quorum=read, write_quorum=write), frozenset()
        if self._kind == "remove" and len(voters) > 2:
            read, write = _majorities(len(voters) - 1)
            name = self._timeline.random.choice(voters)
            return with_removed(members, name, read_quorum=read, write_quorum=write), frozenset()
        if self._kind == "remove learner" and members.learners:
            return self._without(members, members.learners[0].replica_id), frozenset()
        return None

    def _without(self, members: Membership, learner: str) -> Membership:
        return with_removed(members, learner, read_quorum=members.read_quorum, write_quorum=members.write_quorum)

    def _successor(self, members: Membership) -> ReplicaRef:
        """A learner that lives, or somebody new."""
        living = [ref for ref in members.learners if not self._world.replicas[ref.replica_id].gone]
        if living and self._timeline.random.random() < 0.7:
            return living[0]
        name = self._world.spawn().name
        return ReplicaRef(name, name)


def _majorities(voters: int) -> tuple[int, int]:
    """R and W of so many voters after a change of their number."""
    majority = voters // 2 + 1
    return voters + 1 - majority, majority


def members_record(config: str, kind: type[Membership] = Membership) -> ShardRecord:
    """Voters r0, r1 ... of "N/R/W" in their first epoch."""
    voters, read, write = (int(part) for part in config.split("/"))
    refs = tuple(ReplicaRef(f"r{number}", f"r{number}") for number in range(voters))
    return ShardRecord(1, ShardState.ACTIVE, kind(refs, (), read, write))
