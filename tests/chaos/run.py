"""One run: start the mesh, disturb it under traffic, stop it, judge everything that was seen."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.chaos.actions import possible
from tests.chaos.clients import CLIENTS, ChaosClient
from tests.chaos.corpus import Corpus
from tests.chaos.disk_watch import DiskWatch
from tests.chaos.final_state import read_disks
from tests.chaos.nemesis import CONVERGED_WITHIN_S, GIVEN_UP_AFTER_S, Healed, disturb
from tests.chaos.net_mesh import NetMesh
from tests.chaos.observer import Observer
from tests.chaos.recorder import Recorder
from tests.chaos.schedule import SHORT_RUN_HOLD_S, episodes
from tests.chaos.situation import HEALING, NOTHING, ONE_VOTER_DOWN, OTHER, Calls, Situation
from tests.simulation.checker import check

AVAILABLE_MIN = 0.99
"""Of the calls at QUORUM with one voter down."""
PER_MINUTE_MIN = 5_000 / 3
"""Acknowledged rows, and searches at QUORUM: fewer than this would prove too little."""
SHORT_RUN_MINUTES = 2.0
SKEW_SLACK_MS = 500
SHOWN = 20


@dataclass(slots=True)
class Outcome:
    """Everything that was wrong, and the figures."""

    problems: list[str] = field(default_factory=list)
    figures: list[str] = field(default_factory=list)


async def run(directory: Path, seed: int, minutes: float, volume: float) -> Outcome:
    """`volume`: the share of PER_MINUTE_MIN that is asked for. Below 1 the machine has other work, too, and what takes
    longer than it should is printed, not held against the mesh.

    Raises OSError when the network cannot be made, SupervisorError when a process does not start.
    """
    sound = False
    mesh = NetMesh(directory, seed, minutes)
    recorder, situation, calls = Recorder(Corpus(seed)), Situation(), Calls()
    watch = DiskWatch(mesh.config.data_dir / "nodes", recorder, mesh.config.shard.superseded_keep_ms)
    observer = Observer(mesh, recorder.history, mesh.config.shard.clock_skew_ms_max + SKEW_SLACK_MS)
    try:
        await mesh.start()
        clients = [
            ChaosClient(session, await mesh.client(*mesh.router_addresses), recorder, situation, calls, seed)
            for session in range(CLIENTS)
        ]
        within_s = CONVERGED_WITHIN_S if volume >= 1 else GIVEN_UP_AFTER_S
        healed = await _under_traffic(mesh, clients, observer, watch, situation, seed, minutes, within_s)
        await observer.close()
        killed = await mesh.stop()
        outcome = _judge(mesh, recorder, calls, healed, minutes, volume)
        outcome.problems += observer.problems[:SHOWN]
        outcome.problems += [f"{name} did not stop within its drain" for name in killed]
        sound = not outcome.problems
        return outcome
    finally:
        await mesh.stop()
        mesh.unmount(keep=not sound)


async def _under_traffic(
    mesh: NetMesh,
    clients: Sequence[ChaosClient],
    observer: Observer,
    watch: DiskWatch,
    situation: Situation,
    seed: int,
    minutes: float,
    within_s: float,
) -> Healed:
    hold_s_max = SHORT_RUN_HOLD_S if minutes < SHORT_RUN_MINUTES else float("inf")
    async with _beside(*(client.run() for client in clients), observer.run(), watch.run()) as failed:
        until_s = time.monotonic() + 60 * minutes
        plan = episodes(seed, possible(), hold_s_max)
        nemesis = asyncio.create_task(disturb(mesh, plan, situation, observer, clients, until_s, within_s))
        try:
            await asyncio.wait((nemesis, failed), return_when=asyncio.FIRST_COMPLETED)
            if failed.done():
                failed.result()
            healed = nemesis.result()
        finally:
            nemesis.cancel()
            await asyncio.gather(nemesis, return_exceptions=True)
        for client in clients:
            client.writing = False
        await asyncio.gather(*(client.idle.wait() for client in clients))
    if await observer.converged(GIVEN_UP_AFTER_S) is None:
        healed.problems.append(f"replicas were not equal {GIVEN_UP_AFTER_S:g} s after the last write")
    return healed


@asynccontextmanager
async def _beside(*work: Awaitable[None]) -> AsyncIterator[asyncio.Task[None]]:
    """Run all of it until the block ends; the value ends early, and raises, when one of them does."""

    async def all_of_it() -> None:
        await asyncio.gather(*work)

    task = asyncio.create_task(all_of_it())
    try:
        yield task
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def _judge(mesh: NetMesh, recorder: Recorder, calls: Calls, healed: Healed, minutes: float, volume: float) -> Outcome:
    least = volume * minutes * PER_MINUTE_MIN
    disks = read_disks(mesh.config)
    recorder.settle(disks.keyed, disks.stored)
    recorder.history.final = disks.replicas
    violations = check(recorder.history, recorder.corpus.rank)
    outcome = Outcome([f"{violation.check}: {violation.text}" for violation in violations])
    outcome.problems += recorder.problems[:SHOWN] + healed.problems
    share = calls.share(ONE_VOTER_DOWN)
    if volume >= 1 and share < AVAILABLE_MIN:
        outcome.problems.append(f"with one voter down {share:.2%} of QUORUM calls succeeded, not {AVAILABLE_MIN:.0%}")
    for what, count in (("rows", recorder.rows_acked), ("searches", recorder.quorum_searches)):
        if count < least:
            outcome.problems.append(f"{count:,} {what} prove too little: {least:,.0f} were asked for")
    outcome.figures = [
        f"{recorder.rows_acked:,} acknowledged rows in {recorder.writes_acked:,} writes, "
        f"{recorder.quorum_searches:,} searches at QUORUM, {len(recorder.history.searches):,} reads in all",
        f"{len(violations)} violations, of them {sum(v.text.count(' lost ') for v in violations)} lost writes",
        *(
            f"{kind}: {calls.share(kind):.2%} of {calls.succeeded[kind] + calls.failed[kind]:,} QUORUM calls within 1 s"
            for kind in (NOTHING, ONE_VOTER_DOWN, HEALING, OTHER)
        ),
        *(f"  {count} x {reason}" for reason, count in calls.reasons.most_common(SHOWN)),
    ]
    after = (
        ("equal applied sets and digests", healed.equal_s),
        ("every node reached, and a read answered, by each router", healed.served_s),
    )
    for what, seconds in after:
        if seconds:
            median_s = sorted(seconds)[len(seconds) // 2]
            outcome.figures.append(
                f"{what} after each of {len(seconds)} healings: median {median_s:.1f} s, longest {max(seconds):.1f} s"
            )
    return outcome
