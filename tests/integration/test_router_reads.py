"""Reads of the coordinator over simulated shard nodes: what is accepted, what is asked again, who is hedged."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from opentelemetry.trace import INVALID_SPAN

from observability import names
from ostraka.v1 import passage_pb2, router_pb2
from services.quorum.gtid import Gtid, GtidSet
from services.quorum.session import decode_session
from services.quorum.status import ReplicaStatus
from services.quorum.write import Outcome
from services.router.identifiers import passage_id
from services.router.levels import Level
from services.router.lookup import Lookup
from services.router.packing import Document, Row
from services.router.read_request import GetPlan, Reading, Session
from services.router.retrieval import Retrieval, Retrieved, Wanted, retrieval_span
from services.router.search_mode import LEXICAL, Ranking
from services.router.vectors import half_rows
from services.router.writing import Write
from services.runtime.deadline import Deadline
from services.runtime.errors import Unavailable
from tests.integration.router_nodes import NODES, SHARDS, SimulatedMesh, eventually, vector
from tests.traced import recording

QUORUM = passage_pb2.CONSISTENCY_LEVEL_QUORUM
SESSION = passage_pb2.CONSISTENCY_LEVEL_SESSION
ONE = passage_pb2.CONSISTENCY_LEVEL_ONE
COMPLETE = passage_pb2.ShardCoverage.STATE_COMPLETE
MISSING = passage_pb2.ShardCoverage.STATE_UNAVAILABLE
NEAREST = Ranking()


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[SimulatedMesh]:
    made = SimulatedMesh(tmp_path)
    yield made
    await made.close()


def document(document_id: str, *vectors: tuple[float, ...]) -> Document:
    halves = half_rows([vector(*values) for values in vectors])
    return Document(
        document_id,
        tuple(
            Row(
                ordinal,
                half,
                passage_pb2.Passage(
                    passage_id=passage_id(document_id, ordinal), document_id=document_id, ordinal=ordinal, text="t"
                ).SerializeToString(),
            )
            for ordinal, half in enumerate(halves)
        ),
    )


async def put(mesh: SimulatedMesh, *documents: Document) -> list[Outcome]:
    written, _ = await mesh.writing.write(
        mesh.collection, [Write(each) for each in documents], Deadline.after_ms(5_000)
    )
    return [each.outcome for each in written]


def ids_on(mesh: SimulatedMesh, shard: int, count: int) -> list[str]:
    """Document ids that live on one shard."""
    found = (f"d{number}" for number in range(1_000))
    return [name for name in found if mesh.collection.shard_of(name) == shard][:count]


async def search(
    mesh: SimulatedMesh,
    *,
    level: Level.ValueType = QUORUM,
    session: Session | None = None,
    allow_partial: bool = False,
    deadline_ms: int = 5_000,
    ranking: Ranking = NEAREST,
    words: str = "",
    filter_: passage_pb2.Filter | None = None,
) -> Retrieved:
    reading = Reading(mesh.collection, level, session or {}, allow_partial)
    span = retrieval_span(reading, ranking)
    try:
        return await Retrieval(mesh.tools, mesh.legs).search(
            reading,
            Wanted([None if ranking.mode == LEXICAL else vector(1.0)], [words], ranking, filter=filter_),
            model=mesh.collection.model,
            deadline=Deadline.after_ms(deadline_ms),
            span=span,
        )
    finally:
        span.end()


def found(result: Retrieved) -> list[str]:
    return [hit.passage.passage_id for hit in result.results[0].hits]


def lag(mesh: SimulatedMesh, *nodes: str) -> None:
    for node in nodes:
        mesh.nodes[node].faults.refuse_writes = ReplicaStatus.OVERLOADED


async def test_a_quiet_search_is_one_call_to_one_node_beside_the_summaries(mesh: SimulatedMesh) -> None:
    names_ = [*ids_on(mesh, 0, 2), *ids_on(mesh, 1, 2)]
    assert set(await put(mesh, *(document(name, (1.0,), (1.0, 1.0)) for name in names_))) == {Outcome.ACKNOWLEDGED}
    await eventually(lambda: len({node.replicas[0].core.applied for node in mesh.nodes.values()}) == 1)
    before = {name: len(node.requests("Search")) for name, node in mesh.nodes.items()}
    result = await search(mesh)
    assert sorted(found(result)) == sorted(passage_id(name, n) for name in names_ for n in range(2))
    assert [c.state for c in result.coverage] == [COMPLETE, COMPLETE]
    assert sum(len(node.requests("Search")) - before[name] for name, node in mesh.nodes.items()) == 1
    assert all(c.retries == c.hedges == 0 for c in result.coverage)


async def test_provenance_names_what_answered(mesh: SimulatedMesh) -> None:
    await put(mesh, document("d1", (1.0,)))
    result = await search(mesh)
    (hit,) = result.results[0].hits
    shard = mesh.collection.shard_of("d1")
    covered = {c.shard: c for c in result.coverage}[shard]
    assert hit.provenance.shard == shard
    assert hit.provenance.replica == covered.replica == mesh.collection.replica_of[shard, covered.node]
    assert hit.provenance.index_epoch == covered.index_epoch
    assert (hit.provenance.rank, hit.provenance.dense_rank) == (1, 1)
    assert hit.provenance.dense_score == pytest.approx(1.0, abs=1e-3)
    assert hit.passage.version == hit.provenance.version
    assert hit.provenance.embedding_model.id == "model-x"


async def test_a_view_without_an_acknowledged_write_is_not_accepted(mesh: SimulatedMesh) -> None:
    lag(mesh, "a")
    assert await put(mesh, document("d1", (1.0,))) == [Outcome.ACKNOWLEDGED]
    mesh.prefer("a", "b", "c")
    result = await search(mesh)
    assert found(result) == ["d1#0"]
    shard = mesh.collection.shard_of("d1")
    assert {c.shard: c.retries for c in result.coverage}[shard] == 1


async def test_a_replica_that_lacks_a_write_pulls_it_when_told(mesh: SimulatedMesh) -> None:
    lag(mesh, "a")
    await put(mesh, document("d1", (1.0,)))
    for node in ("b", "c"):
        mesh.nodes[node].faults.failing.add("Search")
    mesh.prefer("a", "b", "c")
    assert found(await search(mesh)) == ["d1#0"]
    shard = mesh.collection.shard_of("d1")
    last = mesh.nodes["a"].requests("Search")[-1]
    assert {part.shard for part in last.shards if part.require.sources} == {shard}
    assert set(last.shards[0].holders) == {"b", "c"}


async def test_a_write_seen_only_on_a_voter_that_died_does_not_stall_a_quorum_read(mesh: SimulatedMesh) -> None:
    lag(mesh, "b", "c")
    writing = asyncio.ensure_future(
        mesh.writing.write(mesh.collection, [Write(document("d1", (1.0,)))], Deadline.after_ms(300))
    )
    await eventually(lambda: any(mesh.nodes["a"].replicas[shard].core.applied for shard in SHARDS))
    written, _ = await writing
    assert written[0].outcome is Outcome.UNCERTAIN
    await mesh.writing.close()
    # "a" tells of the write, "b" counts as a holder because it is silent at first, then "a" dies.
    mesh.nodes["a"].faults.failing.add("Search")
    mesh.nodes["b"].faults.hanging.add("Summary")
    mesh.prefer("c")
    reading = asyncio.ensure_future(search(mesh))
    await eventually(lambda: len(mesh.nodes["c"].requests("Search")) >= 1)
    mesh.nodes["a"].faults.down = True
    mesh.nodes["b"].faults.resume.set()
    assert found(await reading) == []


async def test_a_slow_node_is_hedged_and_then_avoided(mesh: SimulatedMesh) -> None:
    await put(mesh, document("d1", (1.0,)))
    mesh.nodes["a"].faults.hanging.update({"Search", "Summary"})
    mesh.prefer("a", "b", "c")
    result = await search(mesh)
    assert found(result) == ["d1#0"]
    assert all(c.hedges == 1 for c in result.coverage)
    assert "a" not in {c.node for c in result.coverage}
    again = await search(mesh)
    assert all(c.hedges == 0 for c in again.coverage)


async def test_a_node_that_refuses_connections_is_replaced_at_once(mesh: SimulatedMesh) -> None:
    await put(mesh, document("d1", (1.0,)))
    mesh.nodes["a"].faults.down = True
    mesh.prefer("a", "b", "c")
    result = await search(mesh)
    assert found(result) == ["d1#0"]
    assert all((c.hedges, c.retries) == (0, 1) for c in result.coverage)


async def test_without_a_quorum_the_read_fails_and_names_the_shards(mesh: SimulatedMesh) -> None:
    await put(mesh, document("d1", (1.0,)))
    for node in ("a", "b"):
        mesh.nodes[node].faults.down = True
    with pytest.raises(Unavailable, match="shard 0") as refused:
        await search(mesh, deadline_ms=500)
    assert refused.value.metadata["shards"] == "0,1"
    partial = await search(mesh, deadline_ms=500, allow_partial=True)
    assert [c.state for c in partial.coverage] == [MISSING, MISSING]
    assert all(c.reason for c in partial.coverage)
    assert found(await search(mesh, level=ONE)) == ["d1#0"]


async def test_a_quorum_that_returns_while_the_read_persists_is_used(mesh: SimulatedMesh) -> None:
    await put(mesh, document("d1", (1.0,)))
    for node in ("a", "b"):
        mesh.nodes[node].faults.down = True
    reading = asyncio.ensure_future(search(mesh))
    await eventually(lambda: len(mesh.nodes["c"].requests("Summary")) >= 2)
    mesh.nodes["a"].faults.down = False
    assert found(await reading) == ["d1#0"]


async def test_one_shard_without_replicas_leaves_the_other_in_a_partial_answer(mesh: SimulatedMesh) -> None:
    (here,), (there,) = ids_on(mesh, 0, 1), ids_on(mesh, 1, 1)
    await put(mesh, document(here, (1.0,)), document(there, (1.0,)))
    for node in mesh.nodes.values():
        node.replicas[1].core.replica_id = "an impostor"
    result = await search(mesh, allow_partial=True, deadline_ms=500)
    assert found(result) == [f"{here}#0"]
    assert [c.state for c in result.coverage] == [COMPLETE, MISSING]


async def test_a_session_reads_its_own_write_at_a_replica_that_lacks_it(mesh: SimulatedMesh) -> None:
    lag(mesh, "a")
    _, seen = await mesh.writing.write(mesh.collection, [Write(document("d1", (1.0,)))], Deadline.after_ms(5_000))
    mesh.prefer("a", "b", "c")
    summaries = sum(len(node.requests("Summary")) for node in mesh.nodes.values())
    result = await search(mesh, level=SESSION, session=dict(seen))
    assert found(result) == ["d1#0"]
    assert sum(len(node.requests("Summary")) for node in mesh.nodes.values()) == summaries
    token = decode_session(result.session_token)
    assert all(token[key].issuperset(held) for key, held in seen.items())


async def test_a_session_whose_write_nobody_has_is_refused_rather_than_broken(mesh: SimulatedMesh) -> None:
    session = {("docs", 0): GtidSet.of(Gtid(5, 1))}
    with pytest.raises(Unavailable, match="NOT_COVERED"):
        await search(mesh, level=SESSION, session=session, deadline_ms=300)
    assert found(await search(mesh, level=QUORUM, session=session)) == []


async def test_sixty_four_searches_share_summaries_and_calls(tmp_path: Path) -> None:
    mesh = SimulatedMesh(tmp_path, leg_hedge_ms=60_000)  # on a busy machine hedges would be counted, too
    await put(mesh, document("d1", (1.0,)))
    await eventually(lambda: len({node.replicas[0].core.applied for node in mesh.nodes.values()}) == 1)
    rounds, legs = mesh.rounds.sent, mesh.legs.sent
    results = await asyncio.gather(*(search(mesh) for _ in range(64)))
    assert all(found(result) == ["d1#0"] for result in results)
    assert mesh.rounds.sent - rounds <= 4 * len(NODES)
    assert mesh.legs.sent - legs <= 4 * len(NODES)
    batched = max(len(request.queries) for node in mesh.nodes.values() for request in node.requests("Search"))
    assert batched > 8
    await mesh.close()


async def test_every_leg_ends_with_an_outcome(mesh: SimulatedMesh, tmp_path: Path) -> None:
    await put(mesh, document("d1", (1.0,)))
    mesh.nodes["a"].faults.hanging.update({"Search", "Summary"})
    mesh.nodes["b"].faults.failing.add("Search")
    mesh.prefer("a", "b", "c")
    with recording(tmp_path / "traces") as recorded:
        await search(mesh)
        legs = recorded.named(names.SPAN_SHARD_SEARCH)
    told = sorted(
        (str(leg.attributes[names.NODE]), str(leg.attributes[names.LEG_ROLE]), str(leg.attributes[names.LEG_OUTCOME]))
        for leg in legs
    )
    assert [outcome for _, _, outcome in told if outcome == "won"] == ["won"] * len(SHARDS)
    assert {("a", "primary", "cancelled"), ("b", "hedge", "error")} <= set(told)
    won = [leg for leg in legs if leg.attributes[names.LEG_OUTCOME] == "won"]
    assert all(leg.attributes[names.REPLICA] == f"replica-{leg.attributes[names.SHARD]}-c" for leg in won)


async def get(mesh: SimulatedMesh, plan: GetPlan) -> router_pb2.GetResponse:
    lookup = Lookup(mesh.links, mesh.reader, mesh.tools)
    return await lookup.get(plan, Deadline.after_ms(5_000), INVALID_SPAN)


async def test_get_returns_documents_and_single_passages_and_says_what_is_missing(mesh: SimulatedMesh) -> None:
    lag(mesh, "a")
    (one,), (two,) = ids_on(mesh, 0, 1), ids_on(mesh, 1, 1)
    await put(mesh, document(one, (1.0,), (1.0, 1.0)), document(two, (1.0,), (0.0, 1.0), (0.0, 0.0, 1.0)))
    mesh.prefer("a", "b", "c")
    plan = GetPlan(Reading(mesh.collection, QUORUM, {}), [one, "never"], [(two, 1), (two, 7)], include_vectors=True)
    reply = await get(mesh, plan)
    assert sorted(p.passage_id for p in reply.passages) == sorted([f"{one}#0", f"{one}#1", f"{two}#1"])
    assert list(reply.missing) == ["never", f"{two}#7"]
    assert all(p.vector.dim == 8 and len(p.vector.data) == 32 for p in reply.passages)
    assert len(reply.coverage) == 2
    assert decode_session(reply.session_token)


async def test_a_deleted_document_is_missing(mesh: SimulatedMesh) -> None:
    await put(mesh, document("d1", (1.0,)))
    assert await put(mesh, Document("d1", ()), Document("never-there", ())) == [Outcome.ACKNOWLEDGED] * 2
    reply = await get(mesh, GetPlan(Reading(mesh.collection, QUORUM, {}), ["d1"], [], include_vectors=False))
    assert list(reply.missing) == ["d1"]
    assert not reply.passages
    assert found(await search(mesh)) == []


async def test_a_read_leaves_nothing_behind(mesh: SimulatedMesh) -> None:
    mesh.nodes["a"].faults.hanging.update({"Search", "Summary"})
    mesh.prefer("a", "b", "c")
    reading = asyncio.ensure_future(search(mesh))
    await mesh.nodes["a"].arrived.wait()
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    await search(mesh)
    await eventually(lambda: all(not mesh.book.outstanding(node) for node in NODES))
    assert mesh.rounds.waiters == 0
