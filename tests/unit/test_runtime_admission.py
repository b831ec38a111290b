"""Admission refuses at once, with a time to come back, and gives places back on every way out."""

from __future__ import annotations

import pytest

from services.runtime.admission import Admission
from services.runtime.errors import ResourceExhausted


def test_full_is_refused_with_a_time_to_come_back() -> None:
    admission = Admission(2, retry_ms=40)
    with admission.admit(), admission.admit():
        assert admission.inflight == 2
        with pytest.raises(ResourceExhausted) as caught, admission.admit():
            pytest.fail("there was no place")
        assert caught.value.retry_ms == 40
        assert caught.value.definite
    assert admission.inflight == 0


def test_a_failing_call_gives_its_place_back() -> None:
    admission = Admission(1)
    with pytest.raises(KeyError), admission.admit():
        raise KeyError
    with admission.admit():
        assert admission.inflight == 1
