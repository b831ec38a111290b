"""A network that loses, doubles and delays messages, and cuts links one way or both."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from tests.simulation.timeline import MS, Action, Timeline

Value = TypeVar("Value")
DELAY_US_MAX = 400 * MS


class Host:
    """Something with an address. A crash ends everything its old life was waiting for."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.up = True
        self.life = 0

    def die(self) -> None:
        """Stop; what was in memory is gone."""
        self.up = False
        self.life += 1


class Network:
    """Carries actions from host to host."""

    def __init__(self, timeline: Timeline) -> None:
        self._timeline = timeline
        self.cut: set[tuple[str, str]] = set()
        self.late_us: dict[str, int] = {}
        """Hosts whose messages take up to so much longer."""
        self.lost = 0.0
        self.doubled = 0.0
        self.delayed = 0.0

    def heal(self) -> None:
        """A sound network from now on; what is under way still arrives late."""
        self.cut.clear()
        self.late_us.clear()
        self.lost = self.doubled = self.delayed = 0.0

    def send(self, source: Host, target: Host, deliver: Action) -> None:
        """Run `deliver` at the target after a while: once, twice or never."""
        chance = self._timeline.random.random
        if (source.name, target.name) in self.cut or (self.lost and chance() < self.lost):
            return
        for _ in range(2 if self.doubled and chance() < self.doubled else 1):
            self._timeline.after(self._delay_us(source), lambda: self._arrive(source, target, deliver))

    def _delay_us(self, source: Host) -> int:
        random = self._timeline.random
        if source.name in self.late_us:
            return int(random.random() * self.late_us[source.name])
        if self.delayed and random.random() < self.delayed:
            return int(random.random() ** 3 * DELAY_US_MAX)
        return 150 + int(random.random() * 700)

    def _arrive(self, source: Host, target: Host, deliver: Action) -> None:
        if target.up and (source.name, target.name) not in self.cut:
            deliver()

    def call(
        self,
        source: Host,
        target: Host,
        handle: Callable[[Callable[[Value], None]], None],
        done: Callable[[Value | None], None],
        timeout_us: int,
    ) -> None:
        """A call: `handle` runs at the target with a function that replies; `done` runs once, None for no answer."""
        life, ended = source.life, False

        def finish(value: Value | None) -> None:
            nonlocal ended
            if not ended and source.life == life:
                ended = True
                done(value)

        def reply(value: Value) -> None:
            self.send(target, source, lambda: finish(value))

        self.send(source, target, lambda: handle(reply))
        self._timeline.after(timeout_us, lambda: finish(None))
