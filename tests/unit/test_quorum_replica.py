"""One replica: what it refuses, what it publishes when, and repair that may come in any order, any number of times."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ostraka.v1 import shard_pb2
from services.quorum.clock import Version, pack
from services.quorum.gtid import Gtid, GtidSet
from services.quorum.replica import OPS_MAX, ReplicaCore, ReplicaLimits
from services.quorum.rows import HeadRow, PassageRow, PullBundle, WriteBatch
from services.quorum.status import ReplicaStatus
from tests.simulation.memory_store import DurableRows, Transaction

NOW_MS = 1_000_000
OK = ReplicaStatus.OK


class Replica:
    """A core over memory whose transactions commit at once."""

    def __init__(self) -> None:
        self.rows = DurableRows()
        self.core = ReplicaCore("r", 1, GtidSet.EMPTY, 0)

    def apply(self, *batches: WriteBatch, epoch: int = 1) -> list[ReplicaStatus]:
        store = Transaction(self.rows)
        statuses = self.core.apply([(batch, epoch) for batch in batches], NOW_MS, store)
        store.commit()
        self.core.committed()
        return statuses

    def merge(self, bundle: PullBundle) -> None:
        store = Transaction(self.rows)
        self.core.merge(bundle, store)
        store.commit()
        self.core.committed()

    def live(self) -> dict[str, tuple[Version, tuple[bytes, ...]]]:
        return {
            name: (head.version, tuple(row.payload for row in self.rows.live_passages(name)))
            for name, head in self.rows.heads.items()
        }

    def everything(self) -> tuple[object, ...]:
        rows = {name: dict(sorted(held.items())) for name, held in self.rows.passages.items() if held}
        return self.core.applied, self.core.hlc_max, self.rows.heads, rows, self.rows.ops


def version(counter: int, source: int = 1) -> Version:
    return Version(pack(NOW_MS, counter), source)


def rows(name: str, at: Version, ordinals: Sequence[int]) -> tuple[PassageRow, ...]:
    return tuple(
        PassageRow(name, ordinal, at, b"", f"{name}{ordinal}@{at.hlc}.{at.source}".encode()) for ordinal in ordinals
    )


def document(seq: int, name: str, counter: int, passages: int, source: int = 1) -> WriteBatch:
    at = version(counter, source)
    return WriteBatch(Gtid(source, seq), at, rows(name, at, range(passages)), (HeadRow(name, passages, at),))


def test_newer_replaces_older_in_either_order() -> None:
    old, new = document(1, "a", 1, 3), document(2, "a", 2, 1)
    forward, backward = Replica(), Replica()
    assert forward.apply(old, new) == backward.apply(new, old) == [OK, OK]
    assert forward.everything() == backward.everything()
    assert forward.live() == {"a": (version(2), (b"a0@%d.1" % version(2).hlc,))}


def test_equal_clock_readings_are_ordered_by_writer() -> None:
    left, right = document(1, "a", 1, 1, source=1), document(1, "a", 1, 2, source=2)
    one, other = Replica(), Replica()
    one.apply(left, right)
    other.apply(right, left)
    assert one.live() == other.live()
    assert one.live()["a"][0].source == 2


def test_same_gtid_twice_is_applied_once() -> None:
    replica = Replica()
    assert replica.apply(document(1, "a", 1, 2), document(1, "a", 1, 2)) == [OK, OK]
    assert len(replica.core.applied) == 1


def test_retry_under_a_new_gtid_changes_no_row() -> None:
    replica = Replica()
    replica.apply(document(1, "a", 1, 2))
    before = replica.live()
    assert replica.apply(document(2, "a", 1, 2)) == [OK]
    assert replica.live() == before
    assert len(replica.core.applied) == 2


def test_late_retry_does_not_undo_a_later_delete() -> None:
    replica = Replica()
    replica.apply(document(1, "a", 1, 2), document(2, "a", 2, 0), document(3, "a", 1, 2))
    assert replica.live() == {"a": (version(2), ())}


@pytest.mark.parametrize(
    ("offset_ms", "epoch", "expected"),
    [
        (0, 0, ReplicaStatus.STALE_EPOCH),
        (0, 2, ReplicaStatus.STALE_TOPOLOGY),
        (-60_001, 1, ReplicaStatus.TOO_OLD),
        (-60_000, 1, OK),
        (5_000, 1, OK),
        (5_001, 1, ReplicaStatus.CLOCK_SKEW),
    ],
)
def test_refusals_change_nothing(offset_ms: int, epoch: int, expected: ReplicaStatus) -> None:
    replica = Replica()
    replica.core = ReplicaCore("r", 1, GtidSet.EMPTY, 0, ReplicaLimits(60_000, 5_000))
    at = Version(pack(NOW_MS + offset_ms), 1)
    batch = WriteBatch(Gtid(1, 1), at, (), (HeadRow("a", 0, at),))
    assert replica.core.admit(batch, epoch, NOW_MS) is expected
    assert replica.apply(batch, epoch=epoch) == [expected]
    assert bool(replica.core.applied) == (expected is OK)
    assert bool(replica.rows.heads) == (expected is OK)


def test_head_waits_for_its_passages() -> None:
    at = version(1)
    early = WriteBatch(Gtid(1, 1), at, rows("a", at, [0]), ())
    late = WriteBatch(Gtid(1, 2), at, rows("a", at, [1]), (HeadRow("a", 2, at),), GtidSet.of(Gtid(1, 1)))
    replica = Replica()
    assert replica.apply(late) == [ReplicaStatus.MISSING_DEPENDENCY]
    assert not replica.rows.heads
    assert replica.apply(early) == [OK]
    assert replica.live() == {}, "staged passages are invisible"
    assert replica.apply(late) == [OK]
    assert len(replica.rows.live_passages("a")) == 2


def test_dependency_may_come_in_the_same_transaction() -> None:
    at = version(1)
    early = WriteBatch(Gtid(1, 1), at, rows("a", at, [0]), ())
    late = WriteBatch(Gtid(1, 2), at, rows("a", at, [1]), (HeadRow("a", 2, at),), GtidSet.of(Gtid(1, 1)))
    assert Replica().apply(early, late) == [OK, OK]


def test_nothing_is_published_before_the_commit_and_nothing_stays_after_an_abort() -> None:
    core, rows_ = ReplicaCore("r", 1, GtidSet.EMPTY, 0), DurableRows()
    core.apply([(document(1, "a", 1, 1), 1)], NOW_MS, Transaction(rows_))
    assert (core.applied, core.hlc_max, core.summary(1).applied) == (GtidSet.EMPTY, 0, GtidSet.EMPTY)
    core.aborted()
    core.committed()
    assert core.applied == GtidSet.EMPTY
    core.apply([(document(1, "a", 1, 1), 1)], NOW_MS, Transaction(rows_))
    core.committed()
    assert core.applied == GtidSet.of(Gtid(1, 1))
    assert core.summary(1).hlc_max == version(1).hlc
    assert core.missing(GtidSet.of(Gtid(1, 1), Gtid(1, 2))) == GtidSet.of(Gtid(1, 2))


def test_pull_covers_what_its_documents_show() -> None:
    """A receiver that wants an old batch gets the document as it is now, and the batch that made it so."""
    sender, receiver = Replica(), Replica()
    sender.apply(document(1, "a", 1, 1), document(2, "a", 2, 2))
    for bundle in sender.core.pull(GtidSet.of(Gtid(1, 1)), sender.rows):
        receiver.merge(bundle)
    assert receiver.live() == sender.live()
    assert receiver.core.applied == sender.core.applied


def test_pull_follows_documents_that_shared_a_batch() -> None:
    sender = Replica()
    at = version(2)
    both = WriteBatch(
        Gtid(1, 2), at, (*rows("a", at, [0]), *rows("b", at, [0])), (HeadRow("a", 1, at), HeadRow("b", 1, at))
    )
    sender.apply(document(1, "a", 1, 1), both, document(3, "b", 3, 0))
    (bundle,) = sender.core.pull(GtidSet.of(Gtid(1, 1)), sender.rows)
    assert bundle.covers == GtidSet.of(Gtid(1, 1), Gtid(1, 2), Gtid(1, 3))
    (smaller,) = sender.core.pull(GtidSet.of(Gtid(1, 1)), sender.rows, have=GtidSet.of(Gtid(1, 2), Gtid(1, 3)))
    assert smaller.covers == GtidSet.of(Gtid(1, 1))
    assert [document_.head.document_id for document_ in smaller.documents] == ["a"]


def test_one_document_written_very_often_comes_in_bundles_of_bounded_size() -> None:
    replica, other = Replica(), Replica()
    count = 2 * OPS_MAX + 10
    for seq in range(1, count + 1):
        replica.apply(document(seq, "doc", seq, 1))
    bundles = list(replica.core.pull(replica.core.applied, replica.rows))
    assert len(bundles) == 3
    assert max(len(bundle.ops) for bundle in bundles) <= OPS_MAX, "nor more than is sent in a few seconds"
    other.merge(bundles[0])
    assert len(other.core.applied) >= OPS_MAX, "every bundle is progress"
    for bundle in bundles[1:]:
        other.merge(bundle)
    assert other.everything() == replica.everything()


def test_pull_of_unknown_batches_is_empty() -> None:
    replica = Replica()
    replica.apply(document(1, "a", 1, 1))
    assert list(replica.core.pull(GtidSet.of(Gtid(9, 9)), replica.rows)) == []


NAMES = ("a", "b", "c")


@st.composite
def workloads(draw: st.DrawFn) -> list[WriteBatch]:
    """Batches of one or two documents, split documents with and without their heads, deletes, equal readings."""
    batches: list[WriteBatch] = []
    for seq in range(1, draw(st.integers(2, 8)) + 1):
        source = draw(st.integers(1, 2))
        at = Version(pack(NOW_MS, draw(st.integers(1, 6))), 100 * source + seq)
        names = draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=2, unique=True))
        counts = [draw(st.integers(0, 3)) for _ in names]
        if draw(st.booleans()):
            early = WriteBatch(Gtid(source, 10 * seq), at, rows(names[0], at, [0]), ())
            batches.append(early)
            if draw(st.booleans()):
                head = (HeadRow(names[0], 2, at),)
                depends = GtidSet.of(early.gtid)
                batches.append(WriteBatch(Gtid(source, 10 * seq + 1), at, rows(names[0], at, [1]), head, depends))
        else:
            passages = tuple(row for name, n in zip(names, counts, strict=True) for row in rows(name, at, range(n)))
            heads = tuple(HeadRow(name, n, at) for name, n in zip(names, counts, strict=True))
            batches.append(WriteBatch(Gtid(source, 10 * seq), at, passages, heads))
    return batches


def partial(batches: Sequence[WriteBatch], chosen: frozenset[int]) -> Replica:
    replica = Replica()
    for index in sorted(chosen):
        if index < len(batches):
            replica.apply(batches[index])
    return replica


indexes = st.frozensets(st.integers(0, 15))


@given(workloads(), indexes, indexes, st.integers(1, 3))
@settings(deadline=None, max_examples=300)
def test_repair_in_any_order_and_repeated_gives_one_state(
    batches: list[WriteBatch], left: frozenset[int], right: frozenset[int], documents_max: int
) -> None:
    first, second = partial(batches, left), partial(batches, right)
    bundles = list(first.core.pull(first.core.applied, first.rows, documents_max))
    bundles += second.core.pull(second.core.applied, second.rows, documents_max)
    forward, backward = Replica(), Replica()
    for bundle in bundles:
        forward.merge(bundle)
    for bundle in [*reversed(bundles), *bundles]:
        backward.merge(bundle)
    assert forward.everything() == backward.everything()
    assert forward.core.applied == first.core.applied.union(second.core.applied)


@given(workloads(), indexes, indexes, indexes)
@settings(deadline=None, max_examples=300)
def test_equal_applied_sets_mean_equal_rows_whatever_the_way(
    batches: list[WriteBatch], left: frozenset[int], right: frozenset[int], wanted: frozenset[int]
) -> None:
    """After a pull of anything, the receiver's rows are those of a replica that applied the same batches in order."""
    sender, receiver = partial(batches, left), partial(batches, right)
    want = GtidSet.of(*(batches[index].gtid for index in wanted if index < len(batches)))
    for bundle in sender.core.pull(want, sender.rows, 1, receiver.core.applied):
        receiver.merge(bundle)
        applied = receiver.core.applied
        reference = Replica()
        for batch in batches:
            if batch.gtid in applied:
                reference.apply(WriteBatch(batch.gtid, batch.version, batch.passages, batch.heads))
        heads = {name: head.version for name, head in reference.rows.heads.items()}
        assert {name: head.version for name, head in receiver.rows.heads.items()} == heads
        assert all(
            len(receiver.rows.live_passages(name)) == head.passages for name, head in receiver.rows.heads.items()
        )
    assert receiver.core.applied.issuperset(want.intersection(sender.core.applied))


def test_statuses_are_those_of_the_contract() -> None:
    contract = {
        name.removeprefix("REPLICA_STATUS_"): number
        for name, number in shard_pb2.ReplicaStatus.items()
        if number != shard_pb2.REPLICA_STATUS_UNSPECIFIED
    }
    assert {status.name: status.value for status in ReplicaStatus} == contract


def fence(replica: Replica, epoch: int) -> ReplicaStatus:
    store = Transaction(replica.rows)
    status = replica.core.fence(epoch, store)
    store.commit()
    replica.core.committed()
    return status


def learn(replica: Replica, epoch: int, frozen: bool) -> bool:
    store = Transaction(replica.rows)
    learned = replica.core.learn(epoch, frozen, store)
    store.commit()
    replica.core.committed()
    return learned


def test_a_fenced_replica_serves_neither_epoch_until_it_has_read_the_record() -> None:
    replica = Replica()
    assert replica.core.epoch_status(2) is ReplicaStatus.STALE_TOPOLOGY, "not believed on sight"
    assert replica.core.epoch == 1
    assert fence(replica, 2) is OK
    assert fence(replica, 2) is OK, "a fence may be repeated"
    assert replica.rows.epoch == (2, True)
    for epoch, status in ((1, "STALE_EPOCH"), (2, "STALE_TOPOLOGY"), (3, "STALE_TOPOLOGY")):
        assert replica.core.summary(epoch).status.name == status
        assert replica.apply(document(1, "a", 1, 1), epoch=epoch)[0].name == status
    assert learn(replica, 3, frozen=False)
    assert replica.core.summary(3).status is OK
    assert replica.apply(document(1, "a", 1, 1), epoch=3) == [OK]


def test_the_epoch_never_goes_back() -> None:
    replica = Replica()
    assert fence(replica, 1) is ReplicaStatus.INVALID, "epoch 1 is active"
    assert learn(replica, 5, frozen=False)
    assert fence(replica, 4) is ReplicaStatus.STALE_EPOCH
    assert not learn(replica, 5, frozen=True)
    assert (replica.core.epoch, replica.core.frozen) == (5, False)


def test_a_fence_between_receipt_and_commit_refuses_what_follows_and_shows_what_came_before() -> None:
    replica = Replica()
    first, second = document(1, "a", 1, 1), document(2, "b", 2, 1)
    assert replica.core.admit(first, 1, NOW_MS) is OK
    assert replica.core.admit(second, 1, NOW_MS) is OK
    store = Transaction(replica.rows)
    assert replica.core.apply([(first, 1)], NOW_MS, store) == [OK]
    assert replica.core.fence(2, store) is OK
    assert replica.core.apply([(second, 1)], NOW_MS, store) == [ReplicaStatus.STALE_EPOCH]
    assert replica.core.epoch == 1, "not before it is durable"
    store.commit()
    replica.core.committed()
    assert (replica.core.epoch, replica.core.frozen) == (2, True)
    assert replica.core.applied == GtidSet.of(first.gtid)


def test_a_fence_that_was_rolled_back_never_happened() -> None:
    replica = Replica()
    assert replica.core.fence(2, Transaction(replica.rows)) is OK
    replica.core.aborted()
    assert (replica.core.epoch, replica.core.frozen, replica.rows.epoch) == (1, False, None)
    assert replica.apply(document(1, "a", 1, 1)) == [OK]


def test_repair_goes_on_while_frozen() -> None:
    source, target = Replica(), Replica()
    source.apply(document(1, "a", 1, 1))
    fence(source, 2)
    fence(target, 2)
    for bundle in source.core.pull(GtidSet.of(Gtid(1, 1)), source.rows):
        target.merge(bundle)
    assert target.core.applied == source.core.applied
