"""One summary request in flight per node, serving every operation that arrived before it was sent.

This is ReadIndex's batching: an operation may use an answer only if the request for it was sent after the operation
arrived, so operations that arrive during a flight wait for the next one. Each node has its own instance; a paused node
delays nobody, since a round needs only R of its voters.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Ticket = TypeVar("Ticket", bound=Hashable)


class Coalescer(Generic[Ticket]):
    """Which operations one node's next answer serves."""

    def __init__(self) -> None:
        self._flight: dict[Ticket, None] | None = None
        self._waiting: dict[Ticket, None] = {}

    def arrive(self, ticket: Ticket) -> bool:
        """An operation wants this node's summary. True: send a request now; False: wait for the next flight."""
        if self._flight is None:
            self._flight = {ticket: None}
            return True
        self._waiting[ticket] = None
        return False

    def landed(self) -> tuple[tuple[Ticket, ...], bool]:
        """The flight ended, well or badly. Returns the operations it served and whether to send the next at once."""
        assert self._flight is not None, "no request is in flight"
        served = tuple(self._flight)
        self._flight = self._waiting or None
        self._waiting = {}
        return served, self._flight is not None

    def board(self) -> None:
        """The next request is about to be sent, some time after the last one landed: who came meanwhile rides along."""
        if self._flight is not None:
            self._flight.update(self._waiting)
            self._waiting = {}

    def take(self, arrived: Callable[[Ticket], bool]) -> tuple[Ticket, ...]:
        """Those that another answer of the node serves: it was asked for after they had `arrived`."""
        served = tuple(ticket for ticket in (*(self._flight or ()), *self._waiting) if arrived(ticket))
        for ticket in served:
            self.forget(ticket)
        return served

    def forget(self, ticket: Ticket) -> None:
        """An operation ended without this node's answer."""
        self._waiting.pop(ticket, None)
        if self._flight is not None:
            self._flight.pop(ticket, None)

    def in_flight(self) -> tuple[Ticket, ...]:
        """The operations that the request in flight, or about to be sent, will serve."""
        return tuple(self._flight or ())
