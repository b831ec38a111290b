"""Writes of the coordinator over simulated shard nodes: who must have what before a caller hears which outcome."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.quorum.clock import Version
from services.quorum.gtid import GtidSet
from services.quorum.status import ReplicaStatus
from services.quorum.write import Outcome
from services.router.packing import Document
from services.router.writing import Write, Written
from services.runtime.clock import SYSTEM_CLOCK
from services.runtime.deadline import Deadline
from tests.integration.router_nodes import NODES, SOURCE, SimulatedMesh, eventually
from tests.integration.test_router_reads import document, found, ids_on, search

LARGE = tuple((1.0, float(number)) for number in range(600))


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[SimulatedMesh]:
    made = SimulatedMesh(tmp_path)
    yield made
    await made.close()


async def write(mesh: SimulatedMesh, *writes: Write, deadline_ms: int = 5_000) -> list[Written]:
    written, _ = await mesh.writing.write(mesh.collection, writes, Deadline.after_ms(deadline_ms))
    return written


def holds(mesh: SimulatedMesh, node: str, document_id: str) -> bool:
    replica = mesh.nodes[node].replicas[mesh.collection.shard_of(document_id)]
    return replica.rows.head(document_id) is not None


async def test_small_documents_of_a_shard_share_one_batch_and_every_voter_gets_it(mesh: SimulatedMesh) -> None:
    names = ids_on(mesh, 0, 5)
    written = await write(mesh, *(Write(document(name, (1.0,))) for name in names))
    assert {each.outcome for each in written} == {Outcome.ACKNOWLEDGED}
    assert len({each.version for each in written}) == 1
    assert all(each.acks >= 2 and each.shard == 0 and each.reason == "" for each in written)
    await eventually(lambda: all(holds(mesh, node, name) for node in NODES for name in names))
    assert [len(mesh.nodes[node].requests("Write")) for node in NODES] == [1, 1, 1]


async def test_a_version_lies_above_every_acknowledged_one_whatever_the_clock_says(mesh: SimulatedMesh) -> None:
    ahead = Version((SYSTEM_CLOCK.wall_ms() + 3_000) << 16, 5)
    await write(mesh, Write(document("d1", (1.0,)), retry_version=ahead))
    (after,) = await write(mesh, Write(document("d1", (0.0, 1.0))))
    assert after.outcome is Outcome.ACKNOWLEDGED
    assert after.version > ahead


async def test_the_head_of_a_large_document_follows_its_acknowledged_passages(mesh: SimulatedMesh) -> None:
    (written,) = await write(mesh, Write(document("d1", *LARGE)))
    assert written.outcome is Outcome.ACKNOWLEDGED
    requests = mesh.nodes["b"].requests("Write")
    assert [len(request.passages) for request in requests] == [256, 256, 88]
    assert [len(request.heads) for request in requests] == [0, 0, 1]
    assert [(s.source, list(s.bounds)) for s in requests[-1].depends.sources] == [(SOURCE, [1, 2])]
    assert all(len(request.passages) + len(request.heads) <= 256 for request in requests)


async def test_a_head_whose_passages_were_not_acknowledged_is_never_sent(mesh: SimulatedMesh) -> None:
    for node in ("a", "b"):
        mesh.nodes[node].faults.failing.add("Write")
    (written,) = await write(mesh, Write(document("d1", *LARGE)), deadline_ms=300)
    assert written.outcome is Outcome.REFUSED
    assert "earlier batch" in written.reason
    assert not any(holds(mesh, node, "d1") for node in NODES)
    assert not any(request.heads for node in mesh.nodes.values() for request in node.requests("Write"))


async def test_a_voter_that_lacks_a_dependency_gets_the_head_when_it_has_caught_up(mesh: SimulatedMesh) -> None:
    mesh.nodes["a"].faults.failing.add("Write")
    writing = asyncio.ensure_future(write(mesh, Write(document("d1", *LARGE))))
    await eventually(lambda: any(request.heads for request in mesh.nodes["b"].requests("Write")))
    mesh.nodes["a"].faults.failing.clear()
    (written,) = await writing
    assert written.outcome is Outcome.ACKNOWLEDGED
    await eventually(lambda: holds(mesh, "a", "d1"))


async def test_short_of_w_a_write_is_uncertain_and_keeps_its_version(mesh: SimulatedMesh) -> None:
    for node in ("a", "b"):
        mesh.nodes[node].faults.lose_acks = True
    (uncertain,) = await write(mesh, Write(document("d1", (1.0,))), deadline_ms=200)
    assert uncertain.outcome is Outcome.UNCERTAIN
    assert uncertain.acks == 1
    assert uncertain.version > Version.ZERO
    for node in ("a", "b"):
        mesh.nodes[node].faults.lose_acks = False
    (again,) = await write(mesh, Write(document("d1", (1.0,)), retry_version=uncertain.version))
    assert again.outcome is Outcome.ACKNOWLEDGED
    assert again.version == uncertain.version
    assert found(await search(mesh)) == ["d1#0"]


async def test_a_retried_write_is_never_called_refused(mesh: SimulatedMesh) -> None:
    old = Version((SYSTEM_CLOCK.wall_ms() - 3_600_000) << 16, 5)
    (late,) = await write(mesh, Write(document("d1", (1.0,)), retry_version=old))
    assert late.outcome is Outcome.UNCERTAIN
    assert "TOO_OLD" in late.reason
    for node in NODES:
        mesh.nodes[node].faults.down = True
    (unsent,) = await write(mesh, Write(document("d1", (1.0,)), retry_version=old), deadline_ms=100)
    assert unsent.outcome is Outcome.UNCERTAIN


async def test_a_write_that_every_voter_refuses_is_refused(mesh: SimulatedMesh) -> None:
    for node in mesh.nodes.values():
        node.faults.refuse_writes = ReplicaStatus.CLOCK_SKEW
    (written,) = await write(mesh, Write(document("d1", (1.0,))))
    assert written.outcome is Outcome.REFUSED
    assert "CLOCK_SKEW" in written.reason
    sent = sum(len(node.requests("Write")) for node in mesh.nodes.values())
    await asyncio.gather(*(write(mesh, Write(Document(f"x{number}", ()))) for number in range(3)))
    assert sum(len(node.requests("Write")) for node in mesh.nodes.values()) <= sent + 9


async def test_without_a_read_quorum_nothing_is_sent(mesh: SimulatedMesh) -> None:
    for node in ("a", "b"):
        mesh.nodes[node].faults.down = True
    (written,) = await write(mesh, Write(document("d1", (1.0,))), deadline_ms=200)
    assert written.outcome is Outcome.REFUSED
    assert not any(node.requests("Write") for node in mesh.nodes.values())


async def test_a_refusal_that_may_pass_is_repeated(mesh: SimulatedMesh) -> None:
    for node in ("a", "b"):
        mesh.nodes[node].faults.refuse_writes = ReplicaStatus.OVERLOADED
    writing = asyncio.ensure_future(write(mesh, Write(document("d1", (1.0,)))))
    await eventually(lambda: len(mesh.nodes["a"].requests("Write")) >= 2)
    mesh.nodes["a"].faults.refuse_writes = None
    ((written,),) = (await writing,)
    assert written.outcome is Outcome.ACKNOWLEDGED


async def test_the_slow_voter_gets_the_batch_after_the_caller_has_its_answer(mesh: SimulatedMesh) -> None:
    mesh.nodes["a"].faults.hanging.add("Write")
    (written,) = await write(mesh, Write(document("d1", (1.0,))))
    assert written.outcome is Outcome.ACKNOWLEDGED
    assert not holds(mesh, "a", "d1")
    mesh.nodes["a"].faults.resume.set()
    await eventually(lambda: holds(mesh, "a", "d1"))


async def test_a_caller_that_goes_away_leaves_no_half_written_document(mesh: SimulatedMesh) -> None:
    for node in ("a", "b"):
        mesh.nodes[node].faults.hanging.add("Write")
    writing = asyncio.ensure_future(write(mesh, Write(document("d1", (1.0,)))))
    await eventually(lambda: bool(mesh.nodes["c"].requests("Write")))
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    for node in ("a", "b"):
        mesh.nodes[node].faults.resume.set()
    await eventually(lambda: all(holds(mesh, node, "d1") for node in NODES))


async def test_concurrent_writers_to_one_document_leave_one_version_everywhere(mesh: SimulatedMesh) -> None:
    written = await asyncio.gather(
        *(write(mesh, Write(document("d1", *[(1.0, float(number))] * (number % 3 + 1)))) for number in range(20))
    )
    last = max((each for (each,) in written), key=lambda each: each.version)
    await eventually(lambda: len({n.replicas[last.shard].core.applied for n in mesh.nodes.values()}) == 1)
    heads = {node.replicas[last.shard].rows.head("d1") for node in mesh.nodes.values()}
    assert {head.version for head in heads if head is not None} == {last.version}
    result = await search(mesh)
    assert {hit.passage.version.hlc for hit in result.results[0].hits} == {last.version.hlc}


async def test_the_session_token_holds_what_was_acknowledged(mesh: SimulatedMesh) -> None:
    writes = [Write(document(name, (1.0,))) for name in (*ids_on(mesh, 0, 1), *ids_on(mesh, 1, 1))]
    _, seen = await mesh.writing.write(mesh.collection, writes, Deadline.after_ms(5_000))
    assert set(seen) == {("docs", 0), ("docs", 1)}
    assert all(held != GtidSet.EMPTY for held in seen.values())
