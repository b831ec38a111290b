"""The client's calls about documents, against a scripted router behind real mutual TLS."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from ostraka import ClientOptions, Outcome, RetryPolicy, errors, where
from ostraka.ingest.exported import ExportFormatError, chunks_of, to_record
from ostraka.listings import ExportedDocument
from ostraka.v1 import passage_pb2, router_pb2
from services.runtime import errors as mesh_errors
from tests.unit.test_client_calls import talking_to, written


def exported(document_id: str) -> router_pb2.ExportedDocument:
    passage = passage_pb2.Passage(
        passage_id=f"{document_id}#0",
        document_id=document_id,
        text="words",
        title="title",
        source="s",
        char_end=5,
        metadata={"year": passage_pb2.MetadataValue(integer=3), "ok": passage_pb2.MetadataValue(flag=True)},
        vector=passage_pb2.Vector(dim=1, data=b"\0\0\x80\x3f"),
    )
    return router_pb2.ExportedDocument(document_id=document_id, passages=[passage])


async def test_conditions_in_every_form_are_the_same_request(tmp_path: Path) -> None:
    seen: list[router_pb2.ListDocumentsRequest] = []

    async def listing(request: router_pb2.ListDocumentsRequest, _context: Any) -> router_pb2.ListDocumentsResponse:
        seen.append(request)
        return router_pb2.ListDocumentsResponse(
            documents=[router_pb2.DocumentSummary(document_id="a", passages=2)], next_page_token="next"
        )

    async with talking_to(tmp_path, ListDocuments=listing) as client:
        for condition in ("year >= 3", where("year") >= 3, {"year": {">=": 3}}):
            page = await client.list_documents(condition, page_size=7, page_token="t")
            assert (page.documents[0].document_id, page.next_page_token) == ("a", "next")
        with pytest.raises(errors.InvalidRequest, match="column 6"):
            await client.list_documents("year ?")
    assert len(seen) == 3
    assert len({request.SerializeToString(deterministic=True) for request in seen}) == 1
    assert (seen[0].page_size, seen[0].page_token, seen[0].filter.range.at_least.integer) == (7, "t", 3)


async def test_an_export_waits_for_each_document_and_not_for_all(tmp_path: Path) -> None:
    gone = asyncio.Event()
    stall = asyncio.Event()

    async def export(_request: Any, context: Any) -> AsyncIterator[router_pb2.ExportedDocument]:
        try:
            for name in ("a", "b"):
                yield exported(name)
            await stall.wait()
        finally:
            gone.set()

    async with talking_to(tmp_path, Export=export) as client:
        documents = client.export(timeout_s=2)
        assert [(await anext(documents)).document_id for _ in range(2)] == ["a", "b"]
        with pytest.raises(errors.DeadlineExceeded, match="no further document"):
            await anext(documents)
        await asyncio.wait_for(gone.wait(), 10)


async def test_an_export_that_breaks_off_says_so(tmp_path: Path) -> None:
    calls = 0

    async def export(_request: Any, _context: Any) -> AsyncIterator[router_pb2.ExportedDocument]:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise mesh_errors.Unavailable("not yet", definite=True)
        yield exported("a")
        raise mesh_errors.Unavailable("a shard is gone", definite=True)

    async with talking_to(tmp_path, Export=export) as client:
        documents = client.export()
        assert (await anext(documents)).document_id == "a"
        with pytest.raises(errors.Unavailable, match="a shard is gone"):
            await anext(documents)
    assert calls == 2, "repeated while nothing had arrived, and not after"


async def test_a_deletion_goes_on_while_there_is_more_and_it_gets_anywhere(tmp_path: Path) -> None:
    replies = [
        ([written("a", Outcome.ACKNOWLEDGED)], True),
        ([written("b", Outcome.ACKNOWLEDGED), written("c", Outcome.UNCERTAIN)], True),
        ([written("c", Outcome.UNCERTAIN)], True),
        ([written("never", Outcome.ACKNOWLEDGED)], False),
    ]
    seen: list[router_pb2.DeleteRequest] = []

    async def delete(request: router_pb2.DeleteRequest, _context: Any) -> router_pb2.DeleteResponse:
        documents, more = replies[len(seen)]
        seen.append(request)
        return router_pb2.DeleteResponse(documents=documents, more=more)

    options = ClientOptions(retry=RetryPolicy(attempts_max=1))
    async with talking_to(tmp_path, options, Delete=delete) as client:
        rounds = [result async for result in client.delete_matching("lang = 'de'", check=False)]
        assert [len(result.documents) for result in rounds] == [1, 2, 1]
        with pytest.raises(errors.InvalidRequest):
            await anext(client.delete_matching())
        with pytest.raises(errors.InvalidRequest):
            await anext(client.delete_matching("a = 1", source="s"))
        seen.clear()
        replies[0] = ([written("x", Outcome.UNCERTAIN)], True)
        with pytest.raises(errors.WriteUncertain):
            await anext(client.delete_matching(source="s"))
    assert seen[0].source == "s"
    assert not seen[0].HasField("filter")


def test_an_exported_line_reads_back_as_it_was() -> None:
    record = to_record(ExportedDocument.from_proto(exported("a")))
    (chunk,) = chunks_of(record)
    assert (chunk.text, chunk.title, chunk.start, chunk.end) == ("words", "title", 0, 5)
    assert (dict(chunk.metadata), chunk.vector) == ({"year": 3, "ok": True}, (1.0,))
    for key, wrong in [("text", 3), ("metadata", {"a": None}), ("metadata", []), ("vector", "x"), ("vector", ["x"])]:
        record["passages"][0][key], kept = wrong, record["passages"][0][key]
        with pytest.raises(ExportFormatError, match=rf"passages\[0\]\.{key}"):
            chunks_of(record)
        record["passages"][0][key] = kept
