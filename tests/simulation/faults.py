"""What goes wrong, and when."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tests.simulation.network import Host, Network
from tests.simulation.replica import SimReplica
from tests.simulation.router import SimRouter
from tests.simulation.timeline import MS, Timeline

Fault = Callable[[], None]


class Nemesis:
    """Starts a fault every now and then, each for a while; several may overlap."""

    def __init__(
        self,
        timeline: Timeline,
        network: Network,
        replicas: Sequence[SimReplica],
        routers: Sequence[SimRouter],
        until_us: int,
    ) -> None:
        self._timeline = timeline
        self._network = network
        self._replicas = replicas
        self._routers = routers
        self._until_us = until_us

    def begin(self) -> None:
        """Set the climate of this seed, then plan the first fault."""
        random = self._timeline.random
        self._network.lost = random.choice((0.0, 0.01, 0.05))
        self._network.doubled = random.choice((0.0, 0.02, 0.1))
        self._network.delayed = random.choice((0.0, 0.03, 0.2))
        for router in self._routers:
            router.skew_ms = random.randint(-400, 400)
        self._plan()

    def _plan(self) -> None:
        self._timeline.after(int(self._timeline.random.expovariate(1 / (120 * MS))), self._strike)

    def _strike(self) -> None:
        if self._timeline.now_us >= self._until_us:
            return
        self._timeline.random.choice(self.faults())()
        self._plan()

    def faults(self) -> Sequence[Fault]:
        """What may strike."""
        return (
            self._crash_replica,
            self._crash_replica,
            self._crash_router,
            self._part,
            self._part,
            self._part_one_way,
            self._slow_disk,
            self._slow_answers,
            self._skew,
        )

    def hosts(self) -> list[Host]:
        """Whom a partition may part."""
        return [*self._replicas, *self._routers]

    def _pick(self) -> SimReplica:
        return self._timeline.random.choice(self._replicas)

    def _restart(self, replica: SimReplica) -> None:
        if not replica.up and not replica.gone:
            replica.start()

    def _a_while(self) -> int:
        return int(self._timeline.random.uniform(20, 500) * MS)

    def _crash_replica(self) -> None:
        replica = self._pick()
        if replica.up:
            replica.die()
            self._timeline.after(self._a_while(), lambda: self._restart(replica))

    def _crash_router(self) -> None:
        router = self._timeline.random.choice(self._routers)
        if router.up:
            router.die()
            self._timeline.after(self._a_while() // 4, lambda: None if router.up else router.start())

    def _links(self) -> list[tuple[str, str]]:
        """All links between a random part of the hosts and the others."""
        random = self._timeline.random
        names = [host.name for host in self.hosts()]
        part = set(random.sample(names, random.randint(1, len(names) // 2)))
        return [(one, other) for one in names for other in names if one in part and other not in part]

    def _cut(self, links: Sequence[tuple[str, str]]) -> None:
        self._network.cut.update(links)
        self._timeline.after(self._a_while(), lambda: self._network.cut.difference_update(links))

    def _part(self) -> None:
        links = self._links()
        self._cut([*links, *((other, one) for one, other in links)])

    def _part_one_way(self) -> None:
        self._cut(self._links())

    def _slow_disk(self) -> None:
        replica, usual = self._pick(), (400, 2_500)
        replica.commit_us = (20 * MS, 90 * MS)

        def mend() -> None:
            replica.commit_us = usual

        self._timeline.after(self._a_while(), mend)

    def _slow_answers(self) -> None:
        """What one voter says takes a while to arrive, and is old by then."""
        name = self._pick().name
        self._network.late_us[name] = self._timeline.random.choice((20, 50, 150)) * MS

        def mend() -> None:
            self._network.late_us.pop(name, None)

        self._timeline.after(self._a_while(), mend)

    def _skew(self) -> None:
        self._timeline.random.choice(self._routers).skew_ms = self._timeline.random.randint(-400, 400)

    def heal(self) -> None:
        """Everything works again."""
        self._network.heal()
        for replica in self._replicas:
            replica.commit_us = (400, 2_500)
            replica.tear = False
            self._restart(replica)
        for router in self._routers:
            if not router.up:
                router.start()
