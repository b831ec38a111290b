"""What `ostraka replica` decides by itself: quorum sizes for another number of voters, and the record's two forms."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ostraka.cli.member_change import quorums
from ostraka.cli.member_records import record_from_stored, record_to_store
from services.quorum.members import ReplicaRef
from services.quorum.shard_record import Membership, ShardRecord, ShardState, with_added, with_removed


def member(number: int) -> ReplicaRef:
    return ReplicaRef(f"{number:032x}", f"n{number}")


@st.composite
def memberships(draw: st.DrawFn) -> Membership:
    count = draw(st.integers(1, 7))
    read = draw(st.integers(1, count))
    write = draw(st.integers(count + 1 - read, count))
    learners = tuple(member(100 + number) for number in range(draw(st.integers(0, 2))))
    return Membership(tuple(map(member, range(count))), learners, read, write)


@given(memberships())
def test_one_voter_more_or_less_needs_no_quorum_sizes_from_the_user(members: Membership) -> None:
    read, write = quorums(members, len(members.voters) + 1, 0, 0)
    grown = with_added(members, member(50), read_quorum=read, write_quorum=write)
    assert (grown.read_quorum, grown.write_quorum) >= (members.read_quorum, members.write_quorum), "never less safe"
    assert read + write - members.read_quorum - members.write_quorum <= 1, "no more than is needed"
    if len(members.voters) > 1:
        read, write = quorums(members, len(members.voters) - 1, 0, 0)
        with_removed(members, members.voters[0].replica_id, read_quorum=read, write_quorum=write)


@given(memberships(), st.integers(1, 3), st.integers(1, 3))
def test_what_the_user_says_counts(members: Membership, read: int, write: int) -> None:
    assert quorums(members, 3, read, write) == (read, write)


@given(memberships(), st.booleans(), st.integers(1, 2**40))
def test_a_record_survives_being_stored(members: Membership, freeze: bool, epoch: int) -> None:
    removed = frozenset({f"{200:032x}"})
    record = ShardRecord(epoch, ShardState.ACTIVE, members, removed=removed)
    if freeze:
        read, write = quorums(members, len(members.voters) + 1, 0, 0)
        record = record.frozen(with_added(members, member(50), read_quorum=read, write_quorum=write))
    assert record_from_stored(record_to_store(record)) == record
