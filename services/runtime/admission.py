"""How many calls may be under way at once; the rest are refused at once, with a time to come back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from services.runtime.errors import ResourceExhausted


class Admission:
    """Counts calls under way. For one event loop; not for several threads."""

    def __init__(self, inflight_max: int, retry_ms: int = 100) -> None:
        assert inflight_max > 0
        assert retry_ms > 0
        self._inflight_max, self._retry_ms = inflight_max, retry_ms
        self._inflight = 0

    @property
    def inflight(self) -> int:
        """Calls under way."""
        return self._inflight

    @contextmanager
    def admit(self) -> Iterator[None]:
        """Hold one place within the block. Raises ResourceExhausted, with retry_ms, when all are taken."""
        if self._inflight >= self._inflight_max:
            raise ResourceExhausted(
                f"{self._inflight} calls are under way, the most allowed; try again later", retry_ms=self._retry_ms
            )
        self._inflight += 1
        try:
            yield
        finally:
            self._inflight -= 1
