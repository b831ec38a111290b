"""No faults, a steady rate of writes: how often digests match, and how often Ostraka's first answer does."""

from __future__ import annotations

from functools import partial
from random import Random

from tests.simulation.cluster import members_of
from tests.simulation.history import History, Write, content_of
from tests.simulation.read_rules.rules import OURS, RULES
from tests.simulation.read_rules.schedule import Cluster, Reads, Shadow, plan_searches
from tests.simulation.timeline import MS, Timeline
from tests.simulation.writing import Writing

RATES = (5, 20, 50, 100, 200, 500)
"""Writes in a second, to one shard."""
CONFIG = "3/2/2"
COMMIT_US = (500, 6_000)
"""How long each voter takes to commit, drawn for each commit."""
DOCUMENTS = tuple(f"doc-{number}" for number in range(32))
SEARCH_EVERY_US = 4 * MS
DIGEST = "digest equality"


def plan_writes(cluster: Cluster, rate: int, seed: int, until_us: int) -> None:
    """Poisson arrivals, each of one document with two passages, through routers taken in turn."""
    random, at_us, count = Random(f"{seed}/writes"), 0, 0

    def write(number: int, document_id: str) -> None:
        contents = tuple(content_of(document_id, ordinal, str(number)) for ordinal in range(2))
        entry = Write(document_id, contents, number, cluster.timeline.now_us)
        cluster.history.writes.append(entry)

        def done(gtids: object | None) -> None:
            if gtids is not None:
                entry.acked_us = cluster.timeline.now_us

        Writing(cluster.routers[number % len(cluster.routers)], [entry], False, done).begin()

    while (at_us := at_us + int(random.expovariate(rate) * 1_000 * MS)) < until_us:
        count += 1
        cluster.timeline.after(at_us, partial(write, count, random.choice(DOCUMENTS)))


def run_with_ingest(rate: int, seconds: int, seed: int = 0) -> tuple[History, dict[str, Reads]]:
    """Digest equality and Ostraka's rule beside `rate` writes a second for some simulated seconds."""
    until_us = seconds * 1_000 * MS
    timeline = Timeline(seed)
    cluster = Cluster(timeline, members_of(CONFIG))
    for replica in cluster.replicas.values():
        replica.commit_us = COMMIT_US
    plan_writes(cluster, rate, seed, until_us)
    shadows = {name: Shadow(cluster, name, RULES[name], seed) for name in (DIGEST, OURS)}
    plan_searches(cluster, list(shadows.values()), seed, SEARCH_EVERY_US, until_us)
    timeline.run_until(until_us + 1_000 * MS)
    return cluster.history, {name: shadow.reads() for name, shadow in shadows.items()}
