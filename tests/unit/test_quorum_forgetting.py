"""Forgetting operations and tombstones, and what a replica that comes later is given instead."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from services.quorum.clock import Version, pack
from services.quorum.gtid import Gtid, GtidSet
from services.quorum.replica import ReplicaCore
from services.quorum.rows import HeadRow, PassageRow, PullBundle, WriteBatch
from services.quorum.stable_cut import StableCut
from services.quorum.status import ReplicaStatus
from tests.simulation.memory_store import DurableRows, Transaction

NOW_MS = 1_700_000_000_000
EVERYTHING = pack(NOW_MS + 1_000)


class Replica:
    """A core over memory whose transactions commit at once."""

    def __init__(self) -> None:
        self.rows = DurableRows()
        self.core = ReplicaCore("r", 1, GtidSet.EMPTY, 0)

    def apply(self, batch: WriteBatch) -> ReplicaStatus:
        store = Transaction(self.rows)
        (status,) = self.core.apply([(batch, 1)], NOW_MS, store)
        self._commit(store)
        return status

    def merge(self, bundle: PullBundle) -> bool:
        store = Transaction(self.rows)
        merged = self.core.merge(bundle, store)
        self._commit(store)
        return merged

    def install(self, bundles: list[PullBundle]) -> bool:
        store = Transaction(self.rows)
        installed = self.core.install(bundles, store)
        self._commit(store)
        return installed

    def forget(self, cut: GtidSet, *, epoch: int = 1, hlc: int = EVERYTHING) -> int:
        store = Transaction(self.rows)
        count = self.core.forget(cut, epoch, hlc, store)
        self._commit(store)
        return count

    def fence(self, epoch: int) -> None:
        store = Transaction(self.rows)
        assert self.core.fence(epoch, store) is ReplicaStatus.OK
        self._commit(store)

    def pull(self, want: GtidSet) -> list[PullBundle]:
        return list(self.core.pull(want, self.rows))

    def state(self) -> list[PullBundle]:
        return list(self.core.state(self.rows, documents_max=2))

    def live(self) -> dict[str, tuple[Version, list[int]]]:
        return {
            name: (head.version, [row.ordinal for row in self.rows.live_passages(name)])
            for name, head in self.rows.heads.items()
            if head.passages
        }

    def _commit(self, store: Transaction) -> None:
        store.commit()
        self.core.committed()


def version(counter: int) -> Version:
    return Version(pack(NOW_MS, counter), 1)


def put(seq: int, name: str, counter: int, passages: int = 1) -> WriteBatch:
    at = version(counter)
    rows = tuple(PassageRow(name, ordinal, at, b"", b"%d" % seq) for ordinal in range(passages))
    return WriteBatch(Gtid(1, seq), at, rows, (HeadRow(name, passages, at),))


def part(seq: int, name: str, counter: int, ordinal: int) -> WriteBatch:
    at = version(counter)
    return WriteBatch(Gtid(1, seq), at, (PassageRow(name, ordinal, at, b"", b""),), ())


def delete(seq: int, name: str, counter: int) -> WriteBatch:
    return put(seq, name, counter, passages=0)


def gtids(*seqs: int) -> GtidSet:
    return GtidSet.of(*(Gtid(1, seq) for seq in seqs))


def test_a_cut_is_empty_until_everyone_was_heard_in_this_epoch() -> None:
    cut = StableCut(3, ["a", "b"])
    cut.heard("a", 3, gtids(1, 2, 3))
    assert not cut.cut(gtids(1, 2, 3))
    cut.heard("b", 2, gtids(1, 2, 3))
    cut.heard("stranger", 3, gtids(1, 2, 3))
    assert not cut.cut(gtids(1, 2, 3))
    cut.heard("b", 3, gtids(2))
    cut.heard("b", 3, gtids(3))
    assert cut.cut(gtids(1, 2)) == gtids(2)


def test_a_tombstone_goes_with_the_last_operation_that_wrote_it() -> None:
    replica = Replica()
    replica.apply(put(1, "doc", 1))
    replica.apply(delete(2, "doc", 2))
    replica.apply(WriteBatch(Gtid(1, 3), version(2), (), (HeadRow("doc", 0, version(2)),)))
    assert replica.forget(gtids(1, 2)) == 2
    assert replica.rows.head("doc") == HeadRow("doc", 0, version(2))
    assert replica.forget(gtids(3)) == 1
    assert replica.rows.head("doc") is None
    assert replica.core.forgotten.floor == version(2)
    assert replica.core.applied == gtids(1, 2, 3)


def test_only_what_is_old_and_in_the_cut_is_forgotten_and_only_in_its_epoch() -> None:
    replica = Replica()
    replica.apply(put(1, "a", 1))
    replica.apply(put(2, "b", 2))
    assert replica.forget(gtids(1, 2), hlc=version(1).hlc) == 1
    assert replica.core.forgotten.gtids == gtids(1)
    assert replica.forget(gtids(2), epoch=2) == 0
    replica.fence(2)
    assert replica.forget(gtids(2), epoch=2) == 0


def test_a_batch_as_old_as_what_is_forgotten_is_refused_unless_it_is_applied() -> None:
    replica = Replica()
    replica.apply(put(1, "doc", 1))
    replica.apply(delete(2, "doc", 3))
    replica.forget(gtids(1, 2))
    assert replica.apply(put(7, "doc", 2)) is ReplicaStatus.TOO_OLD
    assert replica.apply(put(1, "doc", 1)) is ReplicaStatus.OK
    assert replica.apply(put(8, "doc", 4)) is ReplicaStatus.OK
    assert replica.live() == {"doc": (version(4), [0])}


def test_what_was_pulled_before_a_forgotten_delete_is_not_merged() -> None:
    other, replica = Replica(), Replica()
    other.apply(put(1, "doc", 1))
    (early,) = other.pull(gtids(1))
    for batch in (put(1, "doc", 1), delete(2, "doc", 2)):
        replica.apply(batch)
    replica.forget(gtids(1, 2))
    assert not replica.merge(early)
    assert replica.live() == {}
    other.apply(delete(2, "doc", 2))
    other.apply(put(3, "doc", 3))
    (late,) = other.pull(gtids(3))
    assert replica.merge(late)
    assert replica.live() == {"doc": (version(3), [0])}


def test_a_forgotten_tombstone_does_not_come_back_with_a_pull() -> None:
    other, replica = Replica(), Replica()
    for each in (other, replica):
        each.apply(put(1, "doc", 1))
        each.apply(delete(2, "doc", 3))
    replica.forget(gtids(1, 2))
    other.apply(put(9, "doc", 2))  # late, and outranked at once
    have = replica.core.applied
    for bundle in other.core.pull(gtids(9), other.rows, have=have):
        assert replica.merge(bundle)
    assert replica.rows.head("doc") is None
    assert replica.core.applied == gtids(1, 2, 9)


def test_passages_wait_for_their_head_as_long_as_one_of_their_batches_is_remembered() -> None:
    replica, other = Replica(), Replica()
    replica.apply(part(1, "doc", 5, 0))
    replica.apply(part(2, "doc", 5, 1))
    assert replica.forget(gtids(1)) == 1
    (bundle,) = replica.pull(gtids(2))
    assert [row.ordinal for row in bundle.staged] == [0, 1]
    assert other.merge(bundle)
    assert replica.forget(gtids(2)) == 1
    assert not any(replica.rows.passages.values())


def test_a_pull_says_what_is_forgotten() -> None:
    replica = Replica()
    replica.apply(put(1, "doc", 1))
    replica.apply(put(2, "doc", 2))
    replica.forget(gtids(1))
    (bundle,) = replica.pull(gtids(1, 2))
    assert (bundle.covers, bundle.forgotten) == (gtids(2), gtids(1))
    (nothing,) = replica.pull(gtids(1))
    assert (nothing.covers, nothing.forgotten) == (GtidSet.EMPTY, gtids(1))


@settings(max_examples=200, deadline=None)
@given(
    writes=st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 3)), min_size=1, max_size=12),
    forgotten=st.sets(st.integers(1, 12)),
    pulled=st.sets(st.integers(1, 12)),
)
def test_a_whole_state_makes_an_empty_replica_equal(
    writes: list[tuple[str, int]], forgotten: set[int], pulled: set[int]
) -> None:
    replica, coming = Replica(), Replica()
    for seq, (name, passages) in enumerate(writes, start=1):
        assert replica.apply(put(seq, name, seq, passages)) is ReplicaStatus.OK
    for bundle in replica.pull(gtids(*pulled)):
        coming.merge(bundle)
    replica.forget(gtids(*forgotten))
    assert coming.install(replica.state())
    assert coming.live() == replica.live()
    assert coming.core.applied == replica.core.applied
    assert coming.core.forgotten == replica.core.forgotten
    assert coming.rows.ops == replica.rows.ops
    # It can stand in for the one it was made from.
    third = Replica()
    assert third.install(coming.state())
    assert third.live() == replica.live()
