"""Schedules by hand, for faults that chance meets once in hundreds of seeds.

Each is run on the protocol as it is, which must keep its promises, and on the mutant it was written for, which must
break one. Nobody reads the record unless told to, and the network loses and delays nothing but what a schedule cuts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from services.quorum.gtid import GtidSet
from services.quorum.members import ReplicaRef
from services.quorum.shard_record import Membership, ShardRecord, with_replaced
from services.quorum.status import ReplicaStatus
from tests.simulation.checker import check
from tests.simulation.history import History, Hit, Level, Search, Violation, Write, content_of
from tests.simulation.membership import World, members_record
from tests.simulation.memory_store import DurableRows
from tests.simulation.network import Network
from tests.simulation.replica import SimReplica
from tests.simulation.router import SimRouter
from tests.simulation.searching import Searching
from tests.simulation.timeline import MS, Timeline
from tests.simulation.writing import Writing

if TYPE_CHECKING:
    from tests.simulation.cluster import Parts

LONG_US = 400 * MS
"""Longer than any operation."""


class Stage:
    """Three voters with R = W = 2, two routers, and whoever writes the schedule."""

    def __init__(self, parts: Parts, seed: int = 1) -> None:
        self.timeline, self.history = Timeline(seed), History()
        self.network = Network(self.timeline)
        record = members_record("3/2/2")
        self.world = World(self.timeline, self.network, self.history, parts.replica, record)
        members, replicas = record.quorum_members(), self.world.replicas
        self.routers = [parts.router(f"q{n}", self.timeline, self.network, members, replicas) for n in range(2)]
        for router in self.routers:
            router.follow(self.world.store, record)
        self._texts = 0
        self._blind()

    def _blind(self) -> None:
        hosts = [*self.world.replicas, *(router.name for router in self.routers)]
        self.network.cut.update((host, self.world.store.name) for host in hosts)

    def replica(self, name: str) -> SimReplica:
        """One of the replicas, by name."""
        return self.world.replicas[name]

    def run(self, duration_us: int) -> None:
        """Let time pass."""
        self.timeline.run_until(self.timeline.now_us + duration_us)

    def cut(self, one: str, others: Iterable[str]) -> None:
        """No messages between `one` and `others`."""
        for other in others:
            self.network.cut.update({(one, other), (other, one)})

    def join(self, one: str, others: Iterable[str]) -> None:
        """Messages again."""
        for other in others:
            self.network.cut.difference_update({(one, other), (other, one)})

    def write(self, router: SimRouter, document_id: str, *, delete: bool = False) -> Write:
        """Begin to write one document; time has to pass for anything to happen."""
        self._texts += 1
        contents = () if delete else (content_of(document_id, 0, str(self._texts)),)
        write = Write(document_id, contents, self._texts, self.timeline.now_us)
        self.history.writes.append(write)

        def done(gtids: GtidSet | None) -> None:
            write.acked_us = None if gtids is None else self.timeline.now_us

        Writing(router, [write], False, done).begin()
        return write

    def search(self, router: SimRouter) -> bool:
        """A QUORUM search of everything, to its end; whether there was an answer."""
        invoked_us, answers = self.timeline.now_us, len(self.history.searches)

        def done(result: tuple[GtidSet, tuple[Hit, ...]] | None) -> None:
            if result is not None:
                search = Search(Level.QUORUM, 99, 1, 1_000, invoked_us, self.timeline.now_us, result[1])
                self.history.searches.append(search)

        Searching(router, 1, 1_000, None, done).begin()
        self.run(LONG_US)
        return len(self.history.searches) > answers

    def look_up(self, router: SimRouter, document_id: str) -> bool:
        """A lookup at LINEARIZABLE, to its end; whether there was an answer."""
        invoked_us, answers = self.timeline.now_us, len(self.history.searches)

        def done(result: tuple[GtidSet, tuple[Hit, ...]] | None) -> None:
            if result is not None:
                now_us, hits = self.timeline.now_us, result[1]
                search = Search(Level.LINEARIZABLE, 99, 1, 1_000, invoked_us, now_us, hits, document_id)
                self.history.searches.append(search)

        Searching(router, 1, 1_000, None, done, document_id, linearizable=True).begin()
        self.run(LONG_US)
        return len(self.history.searches) > answers

    def tell(self, *hosts: SimReplica | SimRouter) -> None:
        """They read the record now."""
        for host in hosts:
            host.told(self.world.store.record)
        self.run(10 * MS)

    def freeze(self, plan: Callable[[Membership], Membership], dead: frozenset[str] = frozenset()) -> ShardRecord:
        """Write the FROZEN record of a change."""
        store = self.world.store
        return store.swap(store.record.epoch, store.record.frozen(plan(store.record.members), dead))

    def fence(self, name: str) -> GtidSet:
        """Fence a voter for the stored record; what it had applied."""
        answers: list[tuple[ReplicaStatus, GtidSet]] = []
        self.replica(name).on_fence(self.world.store.record.epoch, answers.append)
        self.run(100 * MS)
        ((status, applied),) = answers
        assert status is ReplicaStatus.OK
        return applied

    def catch_up(self, name: str, require: GtidSet, holders: list[str]) -> None:
        """Bring a coming voter to `require`."""
        for _ in range(3):
            self.replica(name).on_catch_up(require, holders, lambda applied: None)
            self.run(20 * MS)
        assert self.replica(name).core.applied.issuperset(require)

    def activate(self) -> None:
        """Write the ACTIVE record that ends the change."""
        store = self.world.store
        store.swap(store.record.epoch, store.record.activated())

    def replacing(self, name: str) -> Callable[[Membership], Membership]:
        """A plan with a new, empty replica in a voter's place."""
        successor = self.world.spawn().name
        self._blind()
        return lambda members: with_replaced(members, name, ReplicaRef(successor, successor))

    def learner(self, snapshot: DurableRows | None = None) -> SimReplica:
        """A learner whom everybody knows of."""
        store, replica = self.world.store, self.world.spawn(snapshot)
        store.swap(store.record.epoch, store.record.with_learner(ReplicaRef(replica.name, replica.name)))
        self._blind()
        self.tell(*self.world.replicas.values(), *self.routers)
        self.run(LONG_US)
        return replica

    def forgotten(self, *names: str) -> bool:
        """Whether all of these have forgotten everything that was written so far."""
        self.run(2 * LONG_US)
        return all(not self.replica(name).durable.ops for name in names)

    def violations(self, *final: str) -> list[Violation]:
        """What the checker says of what clients saw, and of these replicas as they are now."""
        self.history.final += [self.replica(name).final() for name in final]
        return check(self.history)


def read_in_a_frozen_epoch(parts: Parts) -> list[Violation]:
    """A router stops at the FROZEN record; the new members serve; two voters that know no better are still frozen."""
    stage = Stage(parts)
    old, new = stage.routers
    stage.write(new, "doc")
    stage.run(LONG_US)
    stage.freeze(stage.replacing("r2"))
    r0, r1, r2, r3 = (stage.replica(name) for name in ("r0", "r1", "r2", "r3"))
    stage.tell(old, r0, r1, r2, r3)
    union = stage.fence("r0").union(stage.fence("r1"))
    stage.catch_up("r3", union, ["r0", "r1"])
    stage.activate()
    stage.tell(new, r1, r3)
    stage.cut("r0", ["q1", "r1", "r3"])
    stage.cut("r2", ["q1", "r1", "r3"])
    assert _acked(stage, stage.write(new, "doc"))
    stage.cut("q0", ["r1", "r3"])
    stage.search(old)
    return stage.violations()


def fence_between_receipt_and_commit(parts: Parts) -> list[Violation]:
    """A batch arrives while the fence is being synced, and comes up for its own commit afterwards."""
    stage = Stage(parts)
    old, new = stage.routers
    stage.write(new, "doc")
    stage.run(LONG_US)
    stage.freeze(stage.replacing("r2"))
    stage.tell(stage.replica("r0"), stage.replica("r3"))
    stage.cut("r2", ["r0", "r1", "r3"])
    stage.cut("r1", ["r0", "r3"])
    stage.cut("q0", ["r0"])
    r1 = stage.replica("r1")
    r1.commit_us = (20 * MS, 20 * MS)
    union = stage.fence("r0")
    fenced: list[tuple[ReplicaStatus, GtidSet]] = []
    r1.on_fence(stage.world.store.record.epoch, fenced.append)
    stage.write(old, "doc")
    stage.run(LONG_US)
    union = union.union(fenced[0][1])
    stage.catch_up("r3", union, ["r0"])
    stage.activate()
    stage.tell(new, stage.replica("r0"), stage.replica("r3"))
    stage.cut("q1", ["r1"])
    stage.search(new)
    return stage.violations()


def fenced_one_of_two(parts: Parts) -> list[Violation]:
    """Two voters hold a write; the controller reaches the third alone, and one of the two only when it is fenced."""
    stage = Stage(parts)
    router = stage.routers[1]
    controller = parts.controller("c0", stage.timeline, stage.network, stage.world.store, stage.world.replicas)
    stage.write(router, "doc")
    stage.run(LONG_US)
    stage.cut("r0", ["q1", "r1", "r2"])
    assert _acked(stage, stage.write(router, "doc"))
    stage.cut("c0", ["r1", "r2"])
    plan = stage.replacing("r2")
    controller.change(lambda record: (plan(record.members), frozenset()))
    stage.run(5 * MS)
    stage.tell(stage.replica("r0"), stage.replica("r3"))
    stage.run(100 * MS)
    stage.cut("r2", ["r3"])
    stage.join("c0", ["r1"])
    stage.run(LONG_US)
    stage.tell(router, *(stage.replica(name) for name in ("r0", "r1", "r3")))
    stage.join("r0", ["q1"])
    stage.cut("q1", ["r1"])
    stage.search(router)
    return stage.violations()


def written_after_the_fence(parts: Parts) -> list[Violation]:
    """A router that knows nothing of the change writes to a fenced voter and to the one that was replaced."""
    stage = Stage(parts)
    old, new = stage.routers
    stage.write(new, "doc")
    stage.run(LONG_US)
    stage.freeze(stage.replacing("r2"))
    stage.tell(stage.replica("r3"))
    union = stage.fence("r0").union(stage.fence("r1"))
    stage.tell(stage.replica("r0"))
    stage.catch_up("r3", union, ["r0"])
    stage.activate()
    stage.tell(new, stage.replica("r0"), stage.replica("r3"))
    stage.cut("q0", ["r0"])
    for other in ("r1", "r2"):
        stage.cut(other, ["r0", "r3"])
    stage.write(old, "doc")
    stage.run(LONG_US)
    stage.cut("q1", ["r1"])
    stage.search(new)
    return stage.violations()


def looked_up_twice(parts: Parts) -> list[Violation]:
    """A write reached one voter alone; a lookup that hears of it is followed by one that does not reach that voter."""
    stage = Stage(parts)
    old, new = stage.routers
    assert _acked(stage, stage.write(new, "doc"))
    stage.cut("r0", ["r1", "r2"])
    stage.cut("q0", ["r1", "r2"])
    _begin_with_version(stage, old, ahead_ms=0)
    stage.run(LONG_US)
    stage.cut("q1", ["r2"])
    for _ in range(4):
        stage.look_up(new, "doc")
    stage.cut("q1", ["r0"])
    stage.join("q1", ["r2"])
    assert stage.look_up(new, "doc")
    return stage.violations()


def asked_before_and_answered_after(parts: Parts) -> list[Violation]:
    """A voter's summary is on its way while a write is acknowledged; then a search begins that could ride along."""
    found: list[Violation] = []
    for seed in range(40):  # which voter is searched, and how late the summary is, is drawn
        stage = Stage(parts, seed)
        writer, reader = stage.routers
        assert _acked(stage, stage.write(writer, "doc"))
        stage.cut("r2", ["q0", "r0", "r1"])
        stage.cut("q1", ["r0"])
        stage.network.late_us["r1"] = 45 * MS
        Searching(reader, 1, 1_000, None, lambda result: None).begin()
        stage.run(2 * MS)
        stage.network.late_us.clear()
        write = stage.write(writer, "doc")
        stage.run(12 * MS)
        if write.acked_us is not None:
            stage.search(reader)
        found += stage.violations()
    return found


def acknowledged_by_a_removed_voter(parts: Parts) -> list[Violation]:
    """One voter applies a batch and is replaced before anybody else hears of it; the router then asks its successor."""
    stage = Stage(parts)
    old, new = stage.routers
    stage.write(new, "doc")
    stage.run(LONG_US)
    stage.cut("r2", ["r0", "r1"])
    stage.freeze(stage.replacing("r2"))
    r0, r1, r3 = (stage.replica(name) for name in ("r0", "r1", "r3"))
    stage.cut("r2", ["r3"])
    stage.cut("q0", ["r0", "r1"])
    stage.tell(r3)
    union = stage.fence("r0").union(stage.fence("r1"))
    stage.catch_up("r3", union, ["r0", "r1"])
    stage.activate()
    stage.tell(r0, r1, r3, new)
    for host in ("r0", "r1"):
        stage.network.cut.discard((host, "q0"))
        stage.network.cut.discard(("q0", host))
    stage.cut("r0", ["r1", "r3"])
    write = _begin_with_version(stage, old)
    stage.run(20 * MS)
    stage.cut("q0", ["r1", "r3"])
    stage.tell(old)
    stage.run(LONG_US)
    assert write.version is not None
    stage.cut("q1", ["r0"])
    stage.search(new)
    return stage.violations()


def acknowledged_before_the_disk_was_lost(parts: Parts) -> list[Violation]:
    """A voter acknowledges, then loses its disk; the second acknowledgement comes while it is back under its id."""
    stage = Stage(parts)
    old, new = stage.routers
    stage.write(new, "doc")
    stage.run(LONG_US)
    r0, r1 = stage.replica("r0"), stage.replica("r1")
    r1.commit_us = (45 * MS, 45 * MS)
    stage.cut("q0", ["r2"])
    stage.cut("r1", ["r0", "r2"])
    write = stage.write(old, "doc")
    stage.run(15 * MS)
    r0.gone = True
    r0.die()
    stage.run(LONG_US)
    assert write.acked_us is not None
    stage.cut("q1", ["r1"])
    stage.run(LONG_US)
    stage.search(new)
    return stage.violations()


def a_router_two_epochs_behind(parts: Parts) -> list[Violation]:
    """Two voters are replaced one after the other; a router that saw neither change reads and writes."""
    stage = Stage(parts)
    old, new = stage.routers
    stage.write(old, "doc")
    stage.run(LONG_US)
    for leaving, staying in (("r2", ("r0", "r1")), ("r1", ("r0", "r3"))):
        stage.freeze(stage.replacing(leaving))
        union = stage.fence(staying[0]).union(stage.fence(staying[1]))
        coming = f"r{len(stage.world.replicas) - 1}"
        stage.tell(*(stage.replica(name) for name in (*staying, coming)))
        stage.catch_up(coming, union, list(staying))
        stage.activate()
        stage.tell(new, *(stage.replica(name) for name in (*staying, coming)))
    assert _acked(stage, stage.write(new, "doc"))
    stage.cut("q0", ["r0", "r3", "r4"])
    stage.search(old)
    stage.write(old, "doc")
    stage.run(LONG_US)
    stage.search(new)
    return stage.violations()


def forgotten_behind_a_learner(parts: Parts) -> list[Violation]:
    """A learner is cut off; what is written meanwhile is old enough to be forgotten; then it is back."""
    stage = Stage(parts)
    router = stage.routers[0]
    learner = stage.learner()
    assert _acked(stage, stage.write(router, "doc"))
    hosts = ["r0", "r1", "r2", "q0", "q1"]
    stage.cut(learner.name, hosts)
    assert _acked(stage, stage.write(router, "doc", delete=True))
    stage.run(2 * LONG_US)
    stage.join(learner.name, hosts)
    stage.run(3 * LONG_US)
    return stage.violations("r0", "r1", "r2", learner.name)


def pulled_before_a_delete_and_merged_after_it_was_forgotten(parts: Parts) -> list[Violation]:
    """A voter asks for a document; the answer is on its way while the document is deleted and the delete forgotten."""
    stage = Stage(parts)
    router = stage.routers[0]
    stage.cut("r2", ["r0", "r1", "q0"])
    assert _acked(stage, stage.write(router, "doc"))
    r0, r2 = stage.replica("r0"), stage.replica("r2")
    late = r0.bundles(r0.core.applied, GtidSet.EMPTY)
    stage.join("r2", ["r1", "q0"])
    assert _acked(stage, stage.write(router, "doc", delete=True))
    stage.join("r2", ["r0"])
    assert stage.forgotten("r0", "r1", "r2")
    for bundle in late:
        r2.on_bundle(bundle)
    stage.run(LONG_US)
    stage.cut("q0", ["r0"])
    for _ in range(8):
        stage.search(router)
    return stage.violations("r0", "r1", "r2")


def a_snapshot_older_than_a_forgotten_delete(parts: Parts) -> list[Violation]:
    """A learner begins with rows from before a delete that everybody has forgotten since."""
    stage = Stage(parts)
    router = stage.routers[0]
    assert _acked(stage, stage.write(router, "doc"))
    snapshot = DurableRows()
    snapshot.copy_rows(stage.replica("r0").durable)
    assert _acked(stage, stage.write(router, "doc", delete=True))
    assert stage.forgotten("r0", "r1", "r2")
    stage.learner(snapshot)
    stage.run(2 * LONG_US)
    for _ in range(8):
        stage.search(router)
    return stage.violations()


def a_batch_older_than_a_forgotten_delete(parts: Parts) -> list[Violation]:
    """What a router sent before a delete arrives after everybody has forgotten the delete."""
    stage = Stage(parts)
    late, router = stage.routers
    stage.cut("q0", ["r0", "r1", "r2"])
    write = _begin_with_version(stage, late, ahead_ms=0)
    stage.run(LONG_US)
    assert write.acked_us is None
    assert _acked(stage, stage.write(router, "doc"))
    assert _acked(stage, stage.write(router, "doc", delete=True))
    assert stage.forgotten("r0", "r1", "r2")
    stage.join("q0", ["r0", "r1", "r2"])
    Writing(late, [write], False, lambda gtids: None).begin()
    stage.run(LONG_US)
    stage.search(router)
    return stage.violations("r0", "r1", "r2")


def _acked(stage: Stage, write: Write) -> bool:
    stage.run(LONG_US)
    return write.acked_us is not None


def _begin_with_version(stage: Stage, router: SimRouter, ahead_ms: int = 1_000) -> Write:
    """Begin a write whose version is chosen already, so that nobody is asked for a clock."""
    write = Write("doc", (content_of("doc", 0, "late"),), 98, stage.timeline.now_us)
    write.version = router.clock.next(router.now_ms() + ahead_ms)
    stage.history.writes.append(write)

    def done(gtids: GtidSet | None) -> None:
        write.acked_us = None if gtids is None else stage.timeline.now_us

    Writing(router, [write], False, done).begin()
    return write


Schedule = Callable[["Parts"], list[Violation]]
SCHEDULES: tuple[Schedule, ...] = (
    read_in_a_frozen_epoch,
    fence_between_receipt_and_commit,
    fenced_one_of_two,
    written_after_the_fence,
    looked_up_twice,
    asked_before_and_answered_after,
    acknowledged_by_a_removed_voter,
    acknowledged_before_the_disk_was_lost,
    a_router_two_epochs_behind,
    forgotten_behind_a_learner,
    pulled_before_a_delete_and_merged_after_it_was_forgotten,
    a_snapshot_older_than_a_forgotten_delete,
    a_batch_older_than_a_forgotten_delete,
)
