"""Filters, listings, exports and deletions against a real mesh."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner, Result

from observability import names
from ostraka import Client, NewDocument, NewPassage, Retrieved, where
from ostraka.cli.main import app
from ostraka.errors import InvalidRequest
from ostraka.results import Hit
from tests.mesh import Mesh, eventually

pytestmark = pytest.mark.processes

DIM = 384
RNG = np.random.default_rng(11)
COUNT = 130


def vector() -> NDArray[np.float32]:
    return RNG.normal(size=DIM).astype(np.float32)


def document(prefix: str, number: int, source: str = "") -> NewDocument:
    """Two passages: `draft` differs between them, `score` is an integer given for a number."""
    return NewDocument(
        document_id=f"{prefix}/{number:04d}",
        source=source or f"test://{prefix}/{number % 3}",
        metadata={"year": 2000 + number, "lang": ("en", "de", "fr")[number % 3], "undeclared": number},
        passages=[
            NewPassage(text=f"{prefix} {number}", vector=vector(), metadata={"draft": number % 2 == 0}),
            NewPassage(text=f"more {prefix} {number}", vector=vector(), metadata={"score": number % 5}),
        ],
    )


async def store(client: Client, documents: Iterable[NewDocument]) -> None:
    waiting = list(documents)
    for start in range(0, len(waiting), 100):
        await client.upsert(waiting[start : start + 100], timeout_s=60)


@pytest.fixture
async def filled(mesh: Mesh, request: pytest.FixtureRequest) -> AsyncIterator[tuple[Client, str]]:
    """(an open client, the prefix under which COUNT documents are stored)"""
    prefix = request.node.name.replace("_", "-")[:40]
    async with mesh.client() as client:
        await store(client, (document(prefix, number) for number in range(COUNT)))
        yield client, prefix
        async for _ in client.delete_matching(mine(prefix), timeout_s=60):
            pass


def mine(prefix: str) -> str:
    return f"document_id >= '{prefix}/' and document_id < '{prefix}0'"


def numbers(hits: Iterable[Hit]) -> set[int]:
    return {int(hit.passage.document_id.rpartition("/")[2]) for hit in hits}


async def test_searches_find_what_meets_the_filter_and_k_of_it(mesh: Mesh, filled: tuple[Client, str]) -> None:
    client, prefix = filled
    within = where("document_id").between(f"{prefix}/", f"{prefix}0")
    for wanted, expected in [
        (where("year") >= 2120, {n for n in range(COUNT) if n >= 120}),
        ((where("lang") == "de") & (where("year") < 2010), {1, 4, 7}),
        (where("year").is_in([2003, 2004, 3000]), {3, 4}),
        (where("year") == 1999, set()),
        ((where("draft") == True) & (where("year") < 2005), {0, 2, 4}),  # noqa: E712
        (where({"score": {">": 3.5}, "year": {"<": 2010}}), {4, 9}),
        (where(source=f"test://{prefix}/2", year=2002), {2}),
    ]:
        for exact in (False, True):
            found = await client.search(vector(), k=100, exact=exact, where=wanted & within)
            assert numbers(found) == expected
            assert found.complete
    some = await client.search(vector(), k=7, where=f"{mine(prefix)} and lang = 'en'")
    assert len(some) == 7
    assert all(hit.passage.metadata["lang"] == "en" for hit in some)
    without = await client.search(vector(), k=1_000, where=within & ~(where("draft") == False))  # noqa: E712
    assert len(without) == COUNT + COUNT // 2, "second passages have no draft, and meet its negation"

    def described() -> bool:
        searches = [span for span in mesh.spans(some.trace_id) if span.name == names.SPAN_SEARCH]
        return bool(searches) and all(
            span.attributes.get(names.FILTERED) and 7 <= int(str(span.attributes[names.ROWS_MATCHING])) <= 2 * COUNT
            for span in searches
        )

    await eventually(described, what="spans that say that a filter was there and how many rows met it")
    assert "'en'" not in json.dumps([span.attributes for span in mesh.spans(some.trace_id)], default=str)


@pytest.mark.parametrize("mode", ["lexical", "hybrid", "two_stage"])
async def test_every_mode_keeps_to_the_filter(mesh_client: Client, mode: str) -> None:
    prefix = f"filter-{mode}"
    await store(mesh_client, (document(prefix, number) for number in range(40)))
    wanted = f"{mine(prefix)} and year < 2010 and draft = true"
    result = await mesh_client.search(f"{prefix} 4", k=20, mode=mode, where=wanted)
    assert result.hits
    assert numbers(result) <= {0, 2, 4, 6, 8}
    assert result.hits[0].passage.document_id == f"{prefix}/0004"
    asked = [event async for event in mesh_client.ask(f"{prefix} 4", mode=mode, where=wanted)]
    assert isinstance(asked[0], Retrieved)
    assert asked[0].hits
    assert numbers(asked[0].hits) <= {0, 2, 4, 6, 8}
    nothing = await mesh_client.search(f"{prefix} 4", mode=mode, where=f"{wanted} and year = 1")
    assert nothing.hits == ()
    async for _ in mesh_client.delete_matching(mine(prefix)):
        pass


async def test_a_write_is_found_by_the_next_filtered_search(filled: tuple[Client, str]) -> None:
    client, prefix = filled
    for number in (500, 501, 502):
        await store(client, [document(prefix, number)])
        found = await client.search(vector(), k=50, where=f"{mine(prefix)} and year >= 2500")
        assert numbers(found) == set(range(500, number + 1))
    changed = document(prefix, 500)
    await client.upsert([NewDocument(document_id=changed.document_id, passages=changed.passages)])
    assert numbers(await client.search(vector(), k=50, where=f"{mine(prefix)} and year >= 2500")) == {501, 502}


async def test_documents_are_listed_page_by_page_in_order(filled: tuple[Client, str]) -> None:
    client, prefix = filled
    listed = [entry async for entry in client.documents(mine(prefix), page_size=17)]
    assert [entry.document_id for entry in listed] == [f"{prefix}/{number:04d}" for number in range(COUNT)]
    first = listed[0]
    assert (first.passages, first.source, first.metadata["year"]) == (2, f"test://{prefix}/0", 2000)
    assert {entry.shard for entry in listed} == {0, 1}
    page = await client.list_documents(f"{mine(prefix)} and lang = 'fr'", page_size=5)
    assert len(page.documents) == 5
    assert all(shard.complete and shard.replica for shard in page.coverage)
    with pytest.raises(InvalidRequest, match="another collection or filter") as caught:
        await client.list_documents(mine(prefix), page_token=page.next_page_token)
    assert caught.value.field == "page_token"
    cut = page.next_page_token[:-2]
    with pytest.raises(InvalidRequest, match="page token"):
        await client.list_documents(f"{mine(prefix)} and lang = 'fr'", page_token=cut)


async def test_a_listing_is_stable_under_concurrent_writes(filled: tuple[Client, str]) -> None:
    client, prefix = filled
    seen: list[str] = []
    token, page_number = "", 0
    while page_number == 0 or token:
        page = await client.list_documents(mine(prefix), page_size=20, page_token=token)
        seen += [entry.document_id for entry in page.documents]
        token, page_number = page.next_page_token, page_number + 1
        behind, before = seen[0], f"{prefix}/0000a{page_number}"
        await client.delete([behind])  # numbered positions would now skip one
        await store(client, [document(prefix, int(behind[-4:]))])
        await client.upsert([NewDocument(document_id=before, passages=document(prefix, 0).passages)])
    assert seen == sorted(set(seen)), "nothing twice, and in order"
    assert set(seen) >= {f"{prefix}/{number:04d}" for number in range(COUNT)}, "nothing lost"


async def test_an_export_holds_whole_documents_and_comes_back(filled: tuple[Client, str], tmp_path: Path) -> None:
    client, prefix = filled
    exported = [entry async for entry in client.export(mine(prefix), include_vectors=True)]
    assert [entry.document_id for entry in exported] == [f"{prefix}/{number:04d}" for number in range(COUNT)]
    got = await client.get([entry.document_id for entry in exported[:100]], include_vectors=True)
    by_id = {passage.passage_id: passage for passage in got.passages}
    for entry in exported[:100]:
        assert len(entry.passages) == 2
        for passage in entry.passages:
            stored = by_id[passage.passage_id]
            assert (passage.text, dict(passage.metadata), passage.version, passage.content_sha256) == (
                stored.text, dict(stored.metadata), stored.version, stored.content_sha256,
            )  # fmt: skip
            assert passage.vector is not None
            assert np.array_equal(passage.vector, np.asarray(stored.vector))
    stream = client.export(mine(prefix))
    async for _ in stream:
        break  # whoever stops listening ends the export
    await stream.aclose()
    assert (await client.get([exported[0].document_id])).passages


async def test_deletions_by_filter_and_source_beside_writes(filled: tuple[Client, str]) -> None:
    client, prefix = filled
    kept = {number for number in range(COUNT) if number % 3 != 1}

    async def write_others() -> None:
        for number in range(300, 330):
            await store(client, [document(prefix, 3 * number)])  # lang is "en"

    async def delete_german() -> int:
        deleted = 0
        async for result in client.delete_matching(f"{mine(prefix)} and lang = 'de'", timeout_s=60):
            assert all(entry.acks >= 2 for entry in result.documents)
            deleted += len(result.documents)
        return deleted

    _, deleted = await asyncio.gather(write_others(), delete_german())
    assert deleted == COUNT - len(kept)
    left = {int(entry.document_id[-4:]) async for entry in client.documents(mine(prefix))}
    assert left == kept | {3 * number for number in range(300, 330)}
    assert not (await client.search(vector(), where=f"{mine(prefix)} and lang = 'de'")).hits
    async for _ in client.delete_matching(source=f"test://{prefix}/2", timeout_s=60):
        pass
    left = {int(entry.document_id[-4:]) async for entry in client.documents(mine(prefix))}
    assert left == {number for number in kept if number % 3 == 0} | {3 * number for number in range(300, 330)}
    again = [result async for result in client.delete_matching(source=f"test://{prefix}/2")]
    assert again == [], "nothing left is no error"


async def test_the_commands(mesh: Mesh, filled: tuple[Client, str], tmp_path: Path) -> None:
    client, prefix = filled
    few = f"{mine(prefix)} and year < 2004"
    file = tmp_path / "few.jsonl"
    listed = json.loads((await run(mesh, "list", "--json", "--where", few)).stdout)
    assert [entry["document_id"] for entry in listed["documents"]] == [f"{prefix}/{number:04d}" for number in range(4)]
    shown = await run(mesh, "list", "--where", few, "--limit", "2")
    assert "--page " in shown.stdout
    found = json.loads((await run(mesh, "search", "more", "--json", "--where", f"{few} and lang = 'de'")).stdout)
    assert {hit["passage"]["document_id"] for hit in found["hits"]} == {f"{prefix}/0001"}
    assert (await run(mesh, "export", "--output", str(file), "--vectors", "--where", few)).exit_code == 0
    assert len(file.read_text(encoding="utf-8").splitlines()) == 4
    assert (await run(mesh, "export", "--output", str(file), "--where", few)).exit_code == 2, "it exists"
    wrong = await run(mesh, "search", "x", "--where", "year >= ")
    assert wrong.exit_code == 2
    assert "column 9" in wrong.stderr
    assert (await run(mesh, "delete", "--where", few)).exit_code == 2, "nobody is there to say yes"
    assert (await run(mesh, "delete", "a", "--where", few)).exit_code == 2, "one or the other"
    before = await client.get([f"{prefix}/{number:04d}" for number in range(4)], include_vectors=True)
    assert len(before.passages) == 8
    deleted = json.loads((await run(mesh, "delete", "--where", few, "--yes", "--json")).stdout)
    assert (deleted["acknowledged"], deleted["failed"]) == (4, 0)
    assert not (await client.list_documents(few)).documents
    assert (await run(mesh, "ingest", str(file), "--json")).exit_code == 0
    after = await client.get([f"{prefix}/{number:04d}" for number in range(4)], include_vectors=True)
    assert len(after.passages) == 8
    for old, new in zip(before.passages, after.passages, strict=True):
        assert (new.passage_id, new.text, new.source, dict(new.metadata)) == (
            old.passage_id, old.text, old.source, dict(old.metadata),
        )  # fmt: skip
        assert np.allclose(np.asarray(new.vector), np.asarray(old.vector), atol=1e-3)


async def run(mesh: Mesh, *arguments: str) -> Result:
    """A command in a thread, since it has an event loop of its own."""
    given = [arguments[0], *arguments[1:], "--mesh-file", str(mesh.config.path)]
    return await asyncio.to_thread(CliRunner().invoke, app, given)
