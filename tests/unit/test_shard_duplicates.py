"""A gtid names one batch and a version one content: a repeat is welcome, other content under the same name is refused,
and where two replicas could not know of each other they end up equal."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest

from services.quorum.gtid import Gtid, GtidSet
from services.quorum.rows import HeadRow, PassageRow, WriteBatch
from services.quorum.status import ReplicaStatus
from services.shard.store import Database
from tests.unit.shard_rows import SOURCE, batch, passage, vector, version
from tests.unit.test_shard_engine import Replica

OK, INVALID = ReplicaStatus.OK, ReplicaStatus.INVALID


@pytest.fixture
def replica(tmp_path: Path) -> Iterator[Replica]:
    made = Replica(tmp_path)
    yield made
    made.engine.close()


def retry(step: int, of: WriteBatch) -> WriteBatch:
    """The same write under a gtid of its own."""
    return replace(of, gtid=Gtid(SOURCE, step))


def changed(of: WriteBatch, *, payload: bytes | None = None, vector: bytes | None = None) -> WriteBatch:
    """The batch with another first passage."""
    first, *rest = of.passages
    first = replace(first, payload=payload or first.payload, vector=vector or first.vector)
    return replace(of, passages=(first, *rest))


def test_the_same_gtid_with_other_content_is_refused_whatever_became_of_its_rows(replica: Replica) -> None:
    first = batch(1, [("a", 2)])
    assert replica.write(first) == [OK]
    replica.write(batch(2, [("a", 1)]))
    replica.clock.now_ms += replica.engine.config.superseded_keep_ms + 1
    assert replica.engine.purge().result(10) == 2
    replica.clock.now_ms -= replica.engine.config.superseded_keep_ms + 1
    assert replica.write(first) == [OK], "a repeat"
    for other in (
        changed(first, payload=b"other"),
        changed(first, vector=vector(5)),
        replace(first, heads=(HeadRow("a", 1, version(1)),)),
        replace(first, passages=first.passages[:1]),
        replace(batch(9, [("a", 2)]), gtid=first.gtid),
    ):
        (reply,) = replica.replies(other)
        assert reply.status is INVALID
        assert reply.message == "gtid: already used for a batch of other content"
    assert replica.engine.view.rows_live == 1


def test_a_retry_under_its_version_is_the_same_write(replica: Replica) -> None:
    first = batch(1, [("a", 2), ("b", 1)])
    assert replica.write(first, retry(2, first)) == [OK, OK]
    part = WriteBatch(Gtid(SOURCE, 3), first.version, first.passages[2:], first.heads[1:])
    assert replica.write(part) == [OK], "of the documents it held, only those that were uncertain are repeated"
    assert replica.engine.view.rows_live == 3


@pytest.mark.parametrize("what", ["payload", "vector", "fewer", "more", "tombstone"])
def test_other_content_under_a_retried_version_is_refused(replica: Replica, what: str) -> None:
    first = batch(1, [("a", 2)])
    assert replica.write(first) == [OK]
    other = {
        "payload": changed(first, payload=b"other"),
        "vector": changed(first, vector=vector(5)),
        "fewer": replace(first, passages=first.passages[:1], heads=(HeadRow("a", 1, version(1)),)),
        "more": replace(
            first, passages=(*first.passages, passage("a", 2, version(1))), heads=(HeadRow("a", 3, version(1)),)
        ),
        "tombstone": replace(first, passages=(), heads=(HeadRow("a", 0, version(1)),)),
    }[what]
    (reply,) = replica.replies(retry(2, other))
    assert reply.status is INVALID
    assert reply.message.startswith("version: already used for other content")
    assert replica.engine.view.applied == GtidSet.of(first.gtid)
    assert replica.engine.view.rows_live == 2


def test_vectors_that_differ_by_rounding_are_the_same_content(replica: Replica) -> None:
    first = batch(1, [("a", 1)])
    assert replica.write(first, retry(2, rounded(first))) == [OK, OK]
    assert replica.engine.view.rows_live == 1


def rounded(of: WriteBatch) -> WriteBatch:
    """As if its text had been embedded again, in other company."""
    values = np.frombuffer(of.passages[0].vector, dtype="<f2").copy()
    values[0] = np.nextafter(values[0], np.float16(2))
    return changed(of, vector=values.tobytes())


def test_replicas_that_took_different_contents_of_one_version_become_equal(tmp_path: Path) -> None:
    """Each got one of three writes of the same version, and then the others' by repair, in every order."""
    first = batch(1, [("a", 2)])
    writes = (first, retry(2, rounded(first)), retry(3, longer(first)))
    replicas = [Replica(tmp_path, f"r{n}") for n in range(3)]
    for replica, entry in zip(replicas, writes, strict=True):
        assert replica.write(entry) == [OK]
    for _ in range(2):
        for one, other in permutations(replicas, 2):
            for bundle in other.pulled(other.engine.view.applied):
                one.engine.merge(bundle).result(10)
    states = [(each.engine.view.applied, each.engine.view.digest, rows_of(each)) for each in replicas]
    assert states[0] == states[1] == states[2]
    assert [replica.engine.view.rows_live for replica in replicas] == [3, 3, 3]
    for replica in replicas:
        assert replica.restart().view.rows_live == 3
        replica.engine.close()


def longer(of: WriteBatch) -> WriteBatch:
    more = (*of.passages, passage("a", 2, of.version))
    return replace(changed(of, payload=b"quite another"), passages=more, heads=(HeadRow("a", 3, of.version),))


def rows_of(replica: Replica) -> list[PassageRow]:
    with replica.engine.readers.lend() as reader:
        return reader.live_passages("a")


def test_a_damaged_head_refuses_its_own_write_and_no_other(replica: Replica) -> None:
    assert replica.write(batch(1, [("a", 1), ("b", 1)])) == [OK]
    database = Database(replica.directory / "replica.db", writable=True)
    database.rows("UPDATE heads SET n = 2 WHERE document = 'a'")
    database.close()
    core, rows = replica.engine.core, replica.engine._rows
    rows.begin(1)
    group = [(batch(step, [(name, 1)]), 1) for step, name in ((2, "c"), (3, "a"), (4, "b"))]
    assert core.apply(group, replica.clock.now_ms, rows) == [OK, ReplicaStatus.FAILED, OK]
    core.aborted()
    rows.rollback()
    replies = replica.replies(*(entry for entry, _ in group))
    assert [reply.status for reply in replies] == [OK, ReplicaStatus.FAILED, OK]
    assert "head that fails its checksum" in replies[1].message
    assert [str(name) for name in replica.engine.damaged] == ["the head of a"]
    assert len(replica.engine.view.applied) == 3
