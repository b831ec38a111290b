"""Answers from a number of voters, each from another one, within a deadline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from tests.simulation.read_rules.shadow import ReadReplica, ReadRouter
from tests.simulation.searching import DEADLINE_US, HEDGE_US, LEG_US

Value = TypeVar("Value")
Ask = Callable[[ReadReplica, Callable[[Value], None]], None]
"""Runs at a voter, with a function that replies."""
Answers = Sequence[tuple[str, Value]]


class Gather(Generic[Value]):
    """One answer to each of `asks`, in their order, each from another voter of `order`, best voters first.

    A voter that fails is replaced by the next one while there is one, and a slow one is hedged as Ostraka's searches
    are. `done` is called once: None when too few voters answered in time.
    """

    def __init__(
        self,
        router: ReadRouter,
        asks: Sequence[Ask[Value]],
        order: Sequence[str],
        done: Callable[[Answers[Value] | None], None],
    ) -> None:
        assert 1 <= len(asks) <= len(order)
        self._router = router
        self._asks = asks
        self._left = list(order)
        self._done = done
        self._answers: dict[int, tuple[str, Value]] = {}
        self._in_flight = [0] * len(asks)
        self._ended = False

    def begin(self) -> None:
        """Ask the first voters, all at once."""
        self._router.later(DEADLINE_US, lambda: self._finish(None))
        for slot in range(len(self._asks)):
            self._send(slot)
        self._router.later(HEDGE_US, self._hedge)

    def _hedge(self) -> None:
        for slot in range(len(self._asks)):
            if not self._ended and slot not in self._answers and self._left:
                self._send(slot)

    def _send(self, slot: int) -> None:
        name = self._left.pop(0)
        ask, target = self._asks[slot], self._router.voters[name]
        self._in_flight[slot] += 1

        def landed(value: Value | None) -> None:
            self._in_flight[slot] -= 1
            if self._ended:
                return
            if value is None:
                self._failed(slot)
            else:
                self._answered(slot, name, value)

        self._router.network.call(self._router, target, lambda reply: ask(target, reply), landed, LEG_US)

    def _answered(self, slot: int, name: str, value: Value) -> None:
        """An answer that comes twice for one place may take another of the same kind."""
        same = [other for other, ask in enumerate(self._asks) if ask is self._asks[slot]]
        for other in [slot, *same]:
            if other not in self._answers:
                self._answers[other] = (name, value)
                break
        if len(self._answers) == len(self._asks):
            self._finish([self._answers[slot] for slot in range(len(self._asks))])

    def _failed(self, slot: int) -> None:
        if slot in self._answers or self._in_flight[slot]:
            return
        if self._left:
            self._send(slot)
        elif not any(self._in_flight):
            self._finish(None)

    def _finish(self, answers: Answers[Value] | None) -> None:
        if not self._ended:
            self._ended = True
            self._done(answers)
