"""The client's union of session tokens is the mesh's union."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ostraka.session import Session
from services.quorum.gtid import Gtid, GtidSet
from services.quorum.session import decode_session, encode_session, merge_sessions

gtid_sets = st.lists(st.builds(Gtid, st.integers(1, 3), st.integers(1, 12)), min_size=1, max_size=12).map(
    lambda gtids: GtidSet.of(*gtids)
)
sessions = st.dictionaries(st.tuples(st.sampled_from(["docs", "é", "z"]), st.integers(0, 2)), gtid_sets, max_size=4)


@given(st.lists(sessions, max_size=5))
def test_tokens_unite_as_the_mesh_unites_them(replies: list[dict[tuple[str, int], GtidSet]]) -> None:
    session, expected = Session(), dict[tuple[str, int], GtidSet]()
    for reply in replies:
        session.add(encode_session(reply))
        expected = merge_sessions(expected, reply)
    assert decode_session(session.token) == expected
    if expected:
        assert session.token == encode_session(expected)


def test_an_empty_reply_changes_nothing() -> None:
    session = Session(b"\x01")
    session.add(b"")
    assert session.token == b"\x01"


def test_a_token_of_another_layout_replaces_the_old_one() -> None:
    session = Session(encode_session({("docs", 0): GtidSet.of(Gtid(1, 1))}))
    session.add(b"\x02future")
    assert session.token == b"\x02future"


def test_many_writes_stay_small() -> None:
    session = Session()
    for seq in range(1, 2_001):
        session.add(encode_session({("docs", seq % 2): GtidSet.of(Gtid(7, seq // 2 + 1))}))
    assert len(session.token) < 200
