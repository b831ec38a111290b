"""Session tokens: exact round trips, one form per session, and no crash on anything else."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.quorum.gtid import Gtid, GtidSet
from services.quorum.session import TOKEN_BYTES_MAX, Session, decode_session, encode_session, merge_sessions

sets = st.lists(st.builds(Gtid, st.integers(0, (1 << 64) - 1), st.integers(1, 1 << 40)), max_size=8).map(
    lambda gtids: GtidSet.of(*gtids)
)
sessions = st.dictionaries(st.tuples(st.text(max_size=20), st.integers(0, 255)), sets, max_size=4)


@given(sessions)
def test_round_trip(session: Session) -> None:
    token = encode_session(session)
    assert decode_session(token) == session
    assert encode_session(dict(reversed(session.items()))) == token


@given(sessions, sessions)
def test_merge_is_union(left: Session, right: Session) -> None:
    merged = merge_sessions(left, right)
    assert merged == merge_sessions(right, left)
    for key in left.keys() | right.keys():
        assert merged[key] == left.get(key, GtidSet.EMPTY).union(right.get(key, GtidSet.EMPTY))


@given(st.binary(max_size=200))
def test_noise_is_refused_or_read(noise: bytes) -> None:
    with suppress(ValueError):
        assert decode_session(encode_session(decode_session(noise))) == decode_session(noise)


@given(sessions.filter(bool), st.data())
def test_shortened_token_never_reads_as_the_same_session(session: Session, data: st.DataObject) -> None:
    token = encode_session(session)
    cut = token[: data.draw(st.integers(1, len(token) - 1))]
    with suppress(ValueError):
        assert decode_session(cut) != session


def test_nothing_seen() -> None:
    assert decode_session(b"") == {}


def test_bounds() -> None:
    with pytest.raises(ValueError, match="bytes"):
        decode_session(b"\x01" * (TOKEN_BYTES_MAX + 1))
    with pytest.raises(ValueError, match="version 9"):
        decode_session(b"\x09")
