"""When the client calls again, and when never."""

from __future__ import annotations

import pytest

from ostraka import errors
from ostraka.retry import RetryPolicy

POLICY = RetryPolicy(attempts_max=3, pause_ms=100, pause_ms_max=250)


def pause(
    error: errors.OstrakaError, *, read: bool, attempt: int = 1, remaining_s: float = 10.0, jitter: float = 0.5
) -> float | None:
    return POLICY.next_pause_s(error, attempt=attempt, remaining_s=remaining_s, read=read, jitter=jitter)


@pytest.mark.parametrize(
    ("error", "read", "write"),
    [
        (errors.InvalidRequest("k"), False, False),
        (errors.NotFound("collection"), False, False),
        (errors.PermissionDenied("role"), False, False),
        (errors.Unavailable("broken connection"), True, False),
        (errors.Unavailable("refused", definite=True), True, True),
        (errors.Overloaded("full", definite=True), True, True),
        (errors.Overloaded("larger than this client accepts"), True, False),
        (errors.DeadlineExceeded("late"), False, False),
        (errors.ServerError("defect"), True, False),
        (errors.Cancelled("proxy"), True, False),
    ],
)
def test_only_what_is_safe_is_repeated(error: errors.OstrakaError, read: bool, write: bool) -> None:
    assert (pause(error, read=True) is not None) is read
    assert (pause(error, read=False) is not None) is write


def test_attempts_are_bounded() -> None:
    error = errors.Unavailable("down")
    assert pause(error, read=True, attempt=2) is not None
    assert pause(error, read=True, attempt=3) is None


def test_the_servers_advice_is_a_floor() -> None:
    error = errors.Overloaded("full", retry_after_s=0.4, definite=True)
    assert pause(error, read=False, jitter=0.0) == 0.4
    assert pause(error, read=False, remaining_s=0.3) is None


def test_pauses_grow_to_a_ceiling() -> None:
    assert [POLICY.pause_s(attempt, 0.999) for attempt in (1, 2, 3, 60)] == pytest.approx(
        [0.0999, 0.1998, 0.24975, 0.24975]
    )
    assert POLICY.pause_s(1, 0.0) == 0


def test_impossible_policies_are_refused() -> None:
    with pytest.raises(ValueError, match="impossible"):
        RetryPolicy(attempts_max=0)
    with pytest.raises(ValueError, match="impossible"):
        RetryPolicy(pause_ms=10, pause_ms_max=1)
