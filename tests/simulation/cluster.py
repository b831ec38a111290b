"""One seed: a whole cluster with clients and faults, healed at the end."""

from __future__ import annotations

from dataclasses import dataclass

from services.quorum.members import Members, ReplicaRef
from tests.simulation.checker import check
from tests.simulation.client import Client
from tests.simulation.faults import Nemesis
from tests.simulation.history import History, Violation
from tests.simulation.network import Network
from tests.simulation.replica import EPOCH, SimReplica
from tests.simulation.router import SimRouter
from tests.simulation.timeline import MS, Timeline

FAULTS_US = 3_000 * MS
CONVERGE_US = 4_000 * MS
CLIENTS = 5
ROUTERS = 2
DOCUMENTS = tuple(f"doc-{number}" for number in range(8))
CONFIGS = ("3/2/2", "3/1/3", "2/1/2", "5/3/3", "5/2/4")


@dataclass(frozen=True, slots=True)
class Parts:
    """The classes a cluster is built from; mutants replace one."""

    replica: type[SimReplica] = SimReplica
    router: type[SimRouter] = SimRouter
    config: str | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """What a seed brought."""

    seed: int
    config: str
    searches: int
    acked: int
    violations: list[Violation]

    def command(self) -> str:
        """How to run this seed again."""
        return f"python -m tests.simulation --seed {self.seed} --config {self.config}"


def members_of(config: str) -> Members:
    """Voters r0, r1 ... of "N/R/W"."""
    voters, read, write = (int(part) for part in config.split("/"))
    return Members(EPOCH, tuple(ReplicaRef(f"r{number}", f"r{number}") for number in range(voters)), read, write)


def simulate(seed: int, config: str, parts: Parts | None = None) -> History:
    """Run one seed and return its history, the final states included."""
    parts = parts or Parts()
    config = parts.config or config
    timeline, history = Timeline(seed), History()
    network, members = Network(timeline), members_of(config)
    replicas = {
        voter.replica_id: parts.replica(voter.replica_id, timeline, network, history) for voter in members.voters
    }
    for replica in replicas.values():
        replica.peers = {name: peer for name, peer in replicas.items() if peer is not replica}
    routers = [parts.router(f"q{number}", timeline, network, members, replicas) for number in range(ROUTERS)]
    documents = DOCUMENTS[: timeline.random.choice((2, len(DOCUMENTS), len(DOCUMENTS)))]
    think_us = timeline.random.choice((500, 3 * MS, 3 * MS))
    for session in range(CLIENTS):
        Client(session, timeline, routers, history, documents, think_us, FAULTS_US).next()
    nemesis = Nemesis(timeline, network, list(replicas.values()), routers, FAULTS_US)
    nemesis.begin()
    timeline.run_until(FAULTS_US)
    nemesis.heal()
    _converge(timeline, list(replicas.values()))
    history.final += [replica.final() for replica in replicas.values()]
    return history


def _converge(timeline: Timeline, replicas: list[SimReplica]) -> None:
    """Run until late messages have arrived and the voters agree, or for CONVERGE_US."""
    timeline.run_until(FAULTS_US + 1_000 * MS)
    while timeline.now_us < FAULTS_US + CONVERGE_US and len({replica.core.applied for replica in replicas}) > 1:
        timeline.run_until(timeline.now_us + 50 * MS)


def run(seed: int, config: str, parts: Parts | None = None) -> Result:
    """Simulate and judge one seed. An assertion of the production code that fails is a violation too."""
    try:
        history = simulate(seed, config, parts)
    except AssertionError as error:
        return Result(seed, config, 0, 0, [Violation("assertion", str(error) or repr(error))])
    acked = sum(write.acked_us is not None for write in history.writes)
    return Result(seed, config, len(history.searches), acked, check(history))
