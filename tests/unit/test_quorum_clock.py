"""Versions ascend whatever the wall clock does."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.quorum.buckets import BUCKETS, bucket_of
from services.quorum.clock import HLC_MAX, HybridLogicalClock, Version, pack, physical_ms

now_ms = st.integers(0, 1 << 44)


@given(st.lists(st.tuples(now_ms, st.integers(0, 1 << 60)), min_size=1, max_size=30))
def test_versions_ascend_and_exceed_what_was_heard(readings: list[tuple[int, int]]) -> None:
    clock, last = HybridLogicalClock(5), Version.ZERO
    for now, heard in readings:
        version = clock.next(now, heard)
        assert version > last
        assert version.hlc > heard
        assert physical_ms(version.hlc) >= now
        assert version.source == 5
        last = version


@given(now_ms, st.integers(0, (1 << 16) - 1))
def test_reading_keeps_its_milliseconds(now: int, counter: int) -> None:
    assert physical_ms(pack(now, counter)) == now


def test_order_is_clock_then_source() -> None:
    assert Version(1, 9) < Version(2, 0) < Version(2, 1)


def test_clock_does_not_wrap() -> None:
    with pytest.raises(OverflowError):
        HybridLogicalClock(1).next(0, HLC_MAX)


def test_placement_never_changes() -> None:
    assert [bucket_of(name) for name in ("a", "b", "straße", "d" * 512)] == [190, 32, 184, 46]
    assert {bucket_of(str(number)) for number in range(5_000)} == set(range(BUCKETS))
