"""Listings, exports and deletions over simulated nodes: what was acknowledged is listed, whoever fails; an export
reads no further than its caller takes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.trace import INVALID_SPAN

from ostraka.v1 import passage_pb2, router_pb2, shard_pb2
from services.quorum.write import Outcome
from services.router.catalogue import Catalogue
from services.router.list_legs import PageQuestion
from services.router.list_request import ExportPlan, export_plan, list_plan
from services.router.listing import EXPORT_PAGE, Listing
from services.router.packing import Document, Row
from services.router.read_request import Reading
from services.router.vectors import half_rows
from services.router.writing import Write
from services.runtime.deadline import Deadline
from services.runtime.errors import DeadlineExceeded, Unavailable
from tests.integration.router_nodes import NODES, SimulatedMesh, vector

DEADLINE_MS = 5_000
QUORUM = passage_pb2.CONSISTENCY_LEVEL_QUORUM


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[SimulatedMesh]:
    made = SimulatedMesh(tmp_path)
    yield made
    await made.close()


def listing(mesh: SimulatedMesh) -> Listing:
    return Listing(mesh.links, mesh.reader, mesh.tools)


def deadline(duration_ms: float = DEADLINE_MS) -> Deadline:
    return Deadline.after_ms(duration_ms)


async def put(mesh: SimulatedMesh, *document_ids: str, source: str = "s") -> None:
    writes = []
    for document_id in document_ids:
        payload = passage_pb2.Passage(document_id=document_id, source=source, text="t").SerializeToString()
        writes.append(Write(Document(document_id, (Row(0, half_rows([vector(1)])[0], payload),))))
    written, _ = await mesh.writing.write(mesh.collection, writes, deadline())
    assert {entry.outcome for entry in written} == {Outcome.ACKNOWLEDGED}


def plan(**fields: Any) -> router_pb2.ListDocumentsRequest:
    return router_pb2.ListDocumentsRequest(collection="docs", **fields)


async def listed(mesh: SimulatedMesh, page_size: int = 3) -> list[str]:
    catalogue, found, token = Catalogue({"docs": mesh.collection}), [], ""
    while True:
        request = list_plan(plan(page_size=page_size, page_token=token), catalogue)
        page = await listing(mesh).documents(request, deadline(), INVALID_SPAN)
        assert all(part.state == passage_pb2.ShardCoverage.STATE_COMPLETE for part in page.coverage)
        assert page.session_token
        found += [entry.document_id for entry in page.documents]
        token = page.next_page_token
        if not token:
            return found


async def test_what_was_acknowledged_is_listed_although_a_node_missed_it(mesh: SimulatedMesh) -> None:
    names = [f"d{number:02d}" for number in range(11)]
    await put(mesh, *names[:5])
    mesh.nodes["a"].faults.down = True
    await put(mesh, *names[5:])
    mesh.nodes["a"].faults.down = False
    mesh.prefer("a")  # it is asked first, and knows the least
    assert await listed(mesh) == names
    mesh.nodes["b"].faults.down = True
    assert await listed(mesh, page_size=1) == names


async def test_without_a_quorum_nothing_is_listed(mesh: SimulatedMesh) -> None:
    await put(mesh, "a")
    for node in NODES[:2]:
        mesh.nodes[node].faults.down = True
    with pytest.raises(Unavailable) as caught:
        await listing(mesh).documents(
            list_plan(plan(), Catalogue({"docs": mesh.collection})), deadline(1_000), INVALID_SPAN
        )
    assert caught.value.metadata["shards"] == "0,1"


async def test_an_export_reads_no_further_than_its_caller_takes(mesh: SimulatedMesh) -> None:
    names = [f"d{number:04d}" for number in range(3 * EXPORT_PAGE)]
    for start in range(0, len(names), 100):
        await put(mesh, *names[start : start + 100])
    wanted = export_plan(
        router_pb2.ExportRequest(collection="docs", include_vectors=True), Catalogue({"docs": mesh.collection})
    )
    documents = listing(mesh).export(wanted, deadline, INVALID_SPAN)
    first = await anext(documents)
    assert (first.document_id, len(first.passages), first.passages[0].vector.dim) == (names[0], 1, mesh.collection.dim)
    for _ in range(50):
        await asyncio.sleep(0)
    asked = {request.after_document_id for node in mesh.nodes.values() for request in node.requests("ListDocuments")}
    assert asked == {""}, "the second page was not asked for"
    rest = [document.document_id async for document in documents]
    assert [first.document_id, *rest] == names
    asked = {request.after_document_id for node in mesh.nodes.values() for request in node.requests("ListDocuments")}
    assert len(asked) >= 3


async def test_each_page_of_an_export_has_a_deadline_of_its_own(mesh: SimulatedMesh) -> None:
    names = [f"d{number:04d}" for number in range(2 * EXPORT_PAGE)]
    for start in range(0, len(names), 100):
        await put(mesh, *names[start : start + 100])
    reading = Reading(mesh.collection, QUORUM, {})
    given: list[Deadline] = []

    def page_deadline() -> Deadline:
        given.append(deadline(DEADLINE_MS if not given else 300))
        return given[-1]

    documents = listing(mesh).export(ExportPlan(reading, None, False), page_deadline, INVALID_SPAN)
    found = [(await anext(documents)).document_id for _ in range(EXPORT_PAGE)]
    for node in mesh.nodes.values():
        node.faults.hanging.add("ListDocuments")
    with pytest.raises((Unavailable, DeadlineExceeded)):
        await anext(documents)
    assert (len(given), found) == (2, names[:EXPORT_PAGE])


async def test_a_page_by_source_has_only_its_documents(mesh: SimulatedMesh) -> None:
    await put(mesh, "a", "b", "c", source="x")
    await put(mesh, "d", "e", source="y")
    value = passage_pb2.MetadataValue(text="x")
    question = PageQuestion(
        mesh.collection, passage_pb2.Filter(equals=passage_pb2.Equals(field="source", value=value)), "", 2
    )
    found = await listing(mesh).page(Reading(mesh.collection, QUORUM, {}), question, deadline(), INVALID_SPAN)
    assert [document.head.document_id for _, document in found.documents] == ["a", "b"]
    assert found.more
    sent: list[shard_pb2.ListShardDocumentsRequest] = [
        request for node in mesh.nodes.values() for request in node.requests("ListDocuments")
    ]
    assert {request.filter.equals.field for request in sent} == {"source"}
