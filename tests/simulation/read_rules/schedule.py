"""One schedule, and every rule's searches on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from random import Random

from services.quorum.members import Members
from tests.simulation.client import Client
from tests.simulation.cluster import CLIENTS, DOCUMENTS, FAULTS_US, ROUTERS, members_of
from tests.simulation.faults import Nemesis
from tests.simulation.history import History, Level, Search
from tests.simulation.network import Network
from tests.simulation.read_rules.rules import Reply, Rule
from tests.simulation.read_rules.shadow import (
    ReadNetwork,
    ReadReplica,
    ReadRouter,
    ShadowedReplica,
    ShadowedRouter,
    Stream,
)
from tests.simulation.router import SimRouter
from tests.simulation.searching import DEADLINE_US
from tests.simulation.timeline import MS, Timeline

SEARCH_EVERY_US = 8 * MS
"""Mean time between two searches."""
DEPTHS = (2, 5, 1_000)
"""k of the searches; with the last one every row is asked for."""


@dataclass(slots=True)
class Reads:
    """What one rule's searches brought on one schedule."""

    issued: int = 0
    answered: list[Search] = field(default_factory=list)
    indirect: int = 0
    """Answered searches whose first answer did not do."""
    waited: int = 0
    """Searches that a replica had to keep waiting for what it lacked."""
    requests: int = 0
    replica_searches: int = 0


class Cluster:
    """Voters and routers of one schedule, without anything that happens to them."""

    def __init__(self, timeline: Timeline, members: Members) -> None:
        self.timeline, self.members, self.history = timeline, members, History()
        self.network = Network(timeline)
        names = [voter.replica_id for voter in members.voters]
        self.replicas = {name: ShadowedReplica(name, timeline, self.network, self.history) for name in names}
        for replica in self.replicas.values():
            replica.peers = {name: peer for name, peer in self.replicas.items() if peer is not replica}
        self.routers = [
            ShadowedRouter(f"q{number}", timeline, self.network, members, self.replicas) for number in range(ROUTERS)
        ]


class Shadow:
    """One rule's view of a cluster."""

    def __init__(self, cluster: Cluster, name: str, rule: Rule, seed: int) -> None:
        self._rule = rule
        self._stream = Stream(cluster.timeline, f"{seed}/{name}")
        self.network = ReadNetwork(self._stream, cluster.network)
        self._voters = {
            name: ReadReplica(replica, self._stream, self.network) for name, replica in cluster.replicas.items()
        }
        for name, voter in self._voters.items():
            voter.shadows = {other: peer for other, peer in self._voters.items() if other != name}
        self._routers = [
            ReadRouter(router.name, self._stream, self.network, cluster.members, self._voters)
            for router in cluster.routers
        ]
        for replica in cluster.replicas.values():
            replica.shadows += (self._voters[replica.name],)
        for router, own in zip(cluster.routers, self._routers, strict=True):
            router.shadows += (own,)
        self._reads = Reads()

    def search(self, router: int, query: int, k: int) -> None:
        """Search now, through a router that lives."""
        invoked_us = self._stream.now_us
        self._reads.issued += 1

        def done(reply: Reply | None) -> None:
            if reply is not None:
                now_us = self._stream.now_us
                search = Search(Level.QUORUM, -1, query, k, invoked_us, now_us, reply.hits)
                self._reads.answered.append(search)
                self._reads.indirect += not reply.direct

        self._rule(self._routers[router], query, k, done)

    def reads(self) -> Reads:
        """Everything, when all has ended."""
        self._reads.requests = self.network.requests
        self._reads.replica_searches = sum(voter.searches for voter in self._voters.values())
        self._reads.waited = len({query for voter in self._voters.values() for query in voter.waited})
        return self._reads


class Writer(Client):
    """A client that only writes; where it would search, it thinks again."""

    def _search(self, router: SimRouter) -> None:
        self.next()


def plan_searches(cluster: Cluster, shadows: Sequence[Shadow], seed: int, mean_us: int, until_us: int) -> None:
    """The same searches for every shadow, at moments drawn before anything runs."""
    random, at_us = Random(f"{seed}/searches"), 0

    def search(query: int, k: int, chance: float) -> None:
        living = [number for number, router in enumerate(cluster.routers) if router.up]
        if living:
            for shadow in shadows:
                shadow.search(living[int(chance * len(living))], query, k)

    while (at_us := at_us + int(random.expovariate(1 / mean_us))) < until_us:
        planned = partial(search, random.getrandbits(32), random.choice(DEPTHS), random.random())
        cluster.timeline.after(at_us, planned)


def run_with_faults(seed: int, config: str, rules: Mapping[str, Rule]) -> tuple[History, dict[str, Reads]]:
    """The writes and faults of a seed with the searches of some rules; the history holds writes only."""
    timeline = Timeline(seed)
    cluster = Cluster(timeline, members_of(config))
    documents = DOCUMENTS[: timeline.random.choice((2, len(DOCUMENTS), len(DOCUMENTS)))]
    think_us = timeline.random.choice((500, 3 * MS, 3 * MS))
    for session in range(CLIENTS):
        Writer(session, timeline, cluster.routers, cluster.history, documents, think_us, FAULTS_US).next()
    nemesis = Nemesis(timeline, cluster.network, list(cluster.replicas.values()), cluster.routers, FAULTS_US)
    nemesis.begin()
    shadows = {name: Shadow(cluster, name, rule, seed) for name, rule in rules.items()}
    for shadow in shadows.values():
        shadow.network.same_climate()
    plan_searches(cluster, list(shadows.values()), seed, SEARCH_EVERY_US, FAULTS_US - DEADLINE_US)
    timeline.run_until(FAULTS_US)
    nemesis.heal()
    return cluster.history, {name: shadow.reads() for name, shadow in shadows.items()}
