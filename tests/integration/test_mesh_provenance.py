"""One answer, three witnesses: the reply, the router's exported span, and the spans that the shard processes wrote."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Sequence

import pytest

from observability import names
from observability.provenance import parse_documents
from observability.span_record import SpanRecord
from observability.waterfall import render, tree_text
from ostraka.answers import Answer
from ostraka.documents import NewDocument, NewPassage
from tests.mesh import Mesh, eventually

pytestmark = pytest.mark.processes

FACTS = {
    "facts/shard": "A shard is one part of a collection; its rows are stored by every replica of that shard.",
    "facts/quorum": "A quorum read hears enough voters that every acknowledged write is contained in the answer.",
    "facts/tombstone": "A tombstone is the head row of a deleted document; it keeps older writes from coming back.",
    "facts/epoch": "An index epoch names the codec generation and the applied set that a replica searched.",
    "facts/hedge": "A hedged request asks a second replica when the first has not answered in time.",
}
QUESTION = "What does a quorum read promise about acknowledged writes?"
TREE = """\
ostraka.v1.RouterService/Ask SERVER router
  chat extractive CLIENT router
    ostraka.v1.GeneratorService/Generate SERVER generator
  embeddings all-MiniLM-L6-v2 CLIENT router
    ostraka.v1.EmbedService/Embed SERVER embed
  retrieval docs router
    fuse router
    ostraka.v1.ShardService/Search CLIENT router shard=0 role=primary outcome=won
      search shard shard=0 role=primary
    ostraka.v1.ShardService/Search CLIENT router shard=1 role=primary outcome=won
      search shard shard=1 role=primary
    quorum summary router
      ostraka.v1.ShardService/Summary CLIENT router
        ostraka.v1.ShardService/Summary SERVER shard
      ostraka.v1.ShardService/Summary CLIENT router
        ostraka.v1.ShardService/Summary SERVER shard
      ostraka.v1.ShardService/Summary CLIENT router
        ostraka.v1.ShardService/Summary SERVER shard"""
"""Of an undisturbed Ask on an idle mesh, siblings by name. One Search call may serve both legs, so its own SERVER span
is counted apart."""
ENDED_WITHIN_S = 10.0
ATTEMPTS_MAX = 5
SHARDS = 2
SERVER = 2
"""OTLP's number for the kind."""


async def spans_of_ask(mesh: Mesh) -> tuple[Answer, list[SpanRecord]]:
    """An answer without hedges or retries, and all spans of its trace once every process has exported its own."""
    async with mesh.client() as client:
        await client.upsert(
            NewDocument(document_id=document_id, passages=[NewPassage(text=text)], source=f"test:{document_id}")
            for document_id, text in FACTS.items()
        )
        for attempt in range(ATTEMPTS_MAX):
            # A question of its own each time: a cached embedding is another, shorter tree.
            answer = await client.answer(f"{QUESTION} ({secrets.token_hex(4)}, {attempt})")
            if all(covered.hedges == covered.retries == 0 for covered in answer.coverage):
                break

    def whole() -> list[SpanRecord]:
        found = mesh.spans(answer.trace_id)
        searched = {span.attributes[names.SHARD] for span in found if span.name == names.SPAN_SEARCH}
        ended = any(span.name == "ostraka.v1.RouterService/Ask" for span in found)
        summaries = Counter(span.kind for span in found if span.name == names.SPAN_SHARD_SUMMARY)
        heard = {span.service for span in found} == {"router", "embed", "shard", "generator"}
        return found if ended and heard and len(searched) == SHARDS and len(set(summaries.values())) == 1 else []

    return answer, await eventually(whole, ENDED_WITHIN_S, "the export of all spans")


def retrieval_span(spans: Sequence[SpanRecord]) -> SpanRecord:
    """The router's span that carries the documents."""
    (found,) = [span for span in spans if span.name == f"{names.SPAN_RETRIEVAL} docs"]
    assert found.service == "router"
    return found


async def test_the_reply_the_trace_and_the_shards_agree(mesh: Mesh) -> None:
    answer, spans = await spans_of_ask(mesh)
    documents = parse_documents(str(retrieval_span(spans).attributes[names.GEN_AI_DOCUMENTS]))
    assert not documents.truncated
    of_reply = {
        p.passage_id: (p.rank, p.source, p.shard, p.replica, p.index_epoch, p.in_prompt, p.cited)
        for p in answer.provenance
    }
    of_trace = {
        entry["id"]: tuple(
            entry["metadata"][key]
            for key in ("rank", "source", "shard", "replica", "index_epoch", "in_prompt", "cited")
        )
        for entry in documents.entries
    }
    assert of_trace == of_reply
    assert any(p.cited for p in answer.provenance)
    searched = [span for span in spans if span.name == names.SPAN_SEARCH]
    assert {span.service for span in searched} == {"shard"}
    written = {
        (s.attributes[names.SHARD], s.attributes[names.REPLICA], s.attributes[names.INDEX_EPOCH]) for s in searched
    }
    assert {(p.shard, p.replica, p.index_epoch) for p in answer.provenance} <= written


async def test_the_spans_of_an_ask_form_the_tree_of_the_design(mesh: Mesh) -> None:
    _, spans = await spans_of_ask(mesh)
    print(render(spans), tree_text(spans), sep="\n")
    calls = [span for span in spans if (span.name, span.kind) == (names.SPAN_SHARD_SEARCH, SERVER)]
    legs = {span.span_id: span for span in spans if span.name == names.SPAN_SHARD_SEARCH and span.kind != SERVER}
    others = [span for span in spans if span not in calls]
    assert tree_text(others, (names.SHARD, names.LEG_ROLE, names.LEG_OUTCOME)) == TREE
    assert all(call.parent_id in legs for call in calls)
    assert len(calls) == len({leg.attributes[names.NODE] for leg in legs.values()}), "one RPC per node"
