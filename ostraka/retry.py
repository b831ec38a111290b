"""When to call again: pure arithmetic over what went wrong and what time is left.

Reads may always be repeated. Writes are repeated only after a definite failure; an uncertain outcome goes
another way, with its version (`client.Client.upsert`). The server's RetryInfo is obeyed as a floor, and a pause
that does not fit into the deadline ends the attempts. Full jitter after Brooker, "Exponential Backoff And
Jitter" (AWS, 2015), so that clients that failed together do not come back together.
"""

from __future__ import annotations

from dataclasses import dataclass

from ostraka.errors import Cancelled, OstrakaError, RequestError, ServerError, Unavailable


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """Bounds of repetition; `attempts_max` 1 means never."""

    attempts_max: int = 3
    pause_ms: float = 50.0
    """Longest first pause; doubles with each attempt."""
    pause_ms_max: float = 2_000.0

    def __post_init__(self) -> None:
        if self.attempts_max < 1 or self.pause_ms < 0 or self.pause_ms_max < self.pause_ms:
            raise ValueError(f"impossible retry policy: {self}")

    def pause_s(self, attempt: int, jitter: float) -> float:
        """Pause after attempt number `attempt` (from 1); `jitter` in [0, 1)."""
        assert attempt >= 1
        assert 0 <= jitter < 1
        ceiling_ms = min(self.pause_ms_max, self.pause_ms * 2.0 ** min(attempt - 1, 30))
        return ceiling_ms * jitter / 1_000

    def next_pause_s(
        self, error: OstrakaError, *, attempt: int, remaining_s: float, read: bool, jitter: float
    ) -> float | None:
        """How long to wait before calling again; None: give up and raise `error`."""
        if attempt >= self.attempts_max or not _repeatable(error, read=read):
            return None
        pause_s = max(self.pause_s(attempt, jitter), error.retry_after_s or 0.0)
        return pause_s if pause_s < remaining_s else None


def _repeatable(error: OstrakaError, *, read: bool) -> bool:
    if isinstance(error, RequestError):
        return False
    if isinstance(error, Unavailable):
        return read or error.definite
    # A deadline that has passed leaves no time; a server's defect or a proxy's cancellation may be that process's own.
    return read and isinstance(error, (ServerError, Cancelled))
