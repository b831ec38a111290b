"""One seed: a whole cluster with clients and faults, healed at the end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from services.quorum.members import Members
from services.quorum.shard_record import ShardRecord
from tests.simulation.checker import check
from tests.simulation.client import Client
from tests.simulation.controlling import SimController
from tests.simulation.history import History, Violation
from tests.simulation.membership import MemberNemesis, World, members_record
from tests.simulation.network import Network
from tests.simulation.replica import SimReplica
from tests.simulation.router import SimRouter
from tests.simulation.timeline import MS, Timeline

FAULTS_US = 3_000 * MS
CONVERGE_US = 4_000 * MS
CLIENTS = 5
ROUTERS = 2
CONTROLLERS = 2
DOCUMENTS = tuple(f"doc-{number}" for number in range(8))
CONFIGS = ("3/2/2", "3/1/3", "2/1/2", "5/3/3", "5/2/4")


@dataclass(frozen=True, slots=True)
class Parts:
    """The classes a cluster is built from; mutants replace one."""

    replica: type[SimReplica] = SimReplica
    router: type[SimRouter] = SimRouter
    controller: type[SimController] = SimController
    config: str | None = None
    record: Callable[[str], ShardRecord] = members_record


@dataclass(frozen=True, slots=True)
class Result:
    """What a seed brought."""

    seed: int
    config: str
    searches: int
    acked: int
    changes: int
    violations: list[Violation]

    def command(self) -> str:
        """How to run this seed again."""
        return f"python -m tests.simulation --seed {self.seed} --config {self.config}"


def members_of(config: str) -> Members:
    """Voters r0, r1 ... of "N/R/W"."""
    return members_record(config).quorum_members()


def simulate(seed: int, config: str, parts: Parts | None = None) -> History:
    """Run one seed and return its history, the final states included."""
    parts = parts or Parts()
    record = parts.record(parts.config or config)
    timeline, history = Timeline(seed), History()
    network = Network(timeline)
    world = World(timeline, network, history, parts.replica, record)
    routers = [
        parts.router(f"q{number}", timeline, network, record.quorum_members(), world.replicas)
        for number in range(ROUTERS)
    ]
    for router in routers:
        router.follow(world.store, record)
    controllers = [
        parts.controller(f"c{number}", timeline, network, world.store, world.replicas) for number in range(CONTROLLERS)
    ]
    documents = DOCUMENTS[: timeline.random.choice((2, len(DOCUMENTS), len(DOCUMENTS)))]
    think_us = timeline.random.choice((500, 3 * MS, 3 * MS))
    for session in range(CLIENTS):
        Client(session, timeline, routers, history, documents, think_us, FAULTS_US).next()
    nemesis = MemberNemesis(timeline, network, world, routers, controllers, FAULTS_US)
    nemesis.begin()
    timeline.run_until(FAULTS_US)
    nemesis.heal()
    _converge(timeline, world, nemesis)
    history.changes = sum(controller.changes for controller in controllers)
    history.frozen = not nemesis.settled()
    history.final += [replica.final() for replica in world.members()]
    return history


def _converge(timeline: Timeline, world: World, nemesis: MemberNemesis) -> None:
    """Run until late messages have arrived and the members agree, or for CONVERGE_US."""
    timeline.run_until(FAULTS_US + 1_000 * MS)
    while timeline.now_us < FAULTS_US + CONVERGE_US and not (
        nemesis.settled() and len({replica.core.applied for replica in world.members()}) == 1
    ):
        timeline.run_until(timeline.now_us + 50 * MS)


def run(seed: int, config: str, parts: Parts | None = None) -> Result:
    """Simulate and judge one seed. An assertion of the production code that fails is a violation too."""
    try:
        history = simulate(seed, config, parts)
    except AssertionError as error:
        return Result(seed, config, 0, 0, 0, [Violation("assertion", str(error) or repr(error))])
    acked = sum(write.acked_us is not None for write in history.writes)
    return Result(seed, config, len(history.searches), acked, history.changes, check(history))
