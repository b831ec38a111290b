"""The Locust user that offers the open loop, inside the generator process.

Locust's own users are closed loops: each waits for its answer before it calls again, so a stall slows the load
down. Here one user sends every call at its planned time in a greenlet of its own, and Locust sees each through its
`request` event, so its statistics and listeners work; the verdict never uses them, for they are rounded.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import gevent
from gevent.event import Event
from gevent.pool import Group
from locust import User, task
from locust.env import Environment
from locust.exception import StopUser

from loadtest.dispatch import CallResult, OpenLoop
from loadtest.samples import Sample
from loadtest.workload import PlannedCall

GRACE_S = 5.0
"""How long after the last call's deadline the run waits before it gives up on calls without an end."""


class FailedCall(Exception):  # noqa: N818  # Locust prints the class name; this reads as what happened
    """How a failed sample is shown to Locust."""


@dataclass(slots=True)
class Offer:
    """The work of the one user."""

    calls: Sequence[PlannedCall]
    perform: Callable[[PlannedCall], CallResult]
    inflight_max: int
    wait_s: float
    samples: list[Sample]
    inflight_peak: int = 0
    finished: Event = field(default_factory=Event)


class OpenLoopUser(User):
    """Sends the plan once and stops."""

    offer: ClassVar[Offer]

    @task
    def send_plan(self) -> None:
        """Every call at its time; then wait for the last answers."""
        offer, group, began_s = self.offer, Group(), time.perf_counter()
        loop = OpenLoop(
            now=lambda: time.perf_counter() - began_s,
            sleep=gevent.sleep,
            spawn=group.spawn,
            perform=offer.perform,
            inflight_max=offer.inflight_max,
            on_sample=self._record,
        )
        try:
            loop.run(offer.calls)
            group.join(timeout=offer.wait_s + GRACE_S)
        finally:
            offer.inflight_peak = loop.inflight_peak
            offer.finished.set()
        raise StopUser

    def _record(self, sample: Sample) -> None:
        self.offer.samples.append(sample)
        self.environment.events.request.fire(
            request_type="gRPC",
            name=f"{sample.operation} in {sample.phase}",
            response_time=(sample.done_s - sample.intended_s) * 1e3,
            response_length=0,
            exception=None if sample.ok else FailedCall(f"{sample.code}: {sample.detail}"),
            context={"trace_id": sample.trace_id, "phase": sample.phase},
        )


def run(offer: Offer) -> Environment:
    """Run the offer in a Locust environment of its own; returns it with its statistics filled."""
    OpenLoopUser.offer = offer
    environment = Environment(user_classes=[OpenLoopUser], catch_exceptions=False)
    runner = environment.create_local_runner()
    runner.start(user_count=1, spawn_rate=1)
    offer.finished.wait()
    runner.quit()
    return environment
