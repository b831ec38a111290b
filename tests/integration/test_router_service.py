"""The router's front door over real TLS: scripted embed and generator servers, simulated shard nodes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from observability import names
from observability.provenance import documents_json, parse_documents
from ostraka.v1 import embed_pb2, generator_pb2, passage_pb2, router_pb2, router_pb2_grpc
from services.router.ask import Asking
from services.router.catalogue import Catalogue
from services.router.embedder import Embedder, chunked
from services.router.generation import Generation
from services.router.idempotency import KeyedWrites
from services.router.ingest import Ingest
from services.router.listing import Listing
from services.router.lookup import Lookup
from services.router.readiness import wait_until_ready
from services.router.retrieval import Retrieval
from services.router.service import RouterServicer
from services.router.status import Status
from services.router.write_back import WriteBack
from services.runtime.channel import ChannelPool, open_channel
from services.runtime.clock import SYSTEM_CLOCK
from services.runtime.errors import FailedPrecondition, InvalidArgument, MeshError, Unavailable, from_rpc_error
from services.runtime.server import MeshServer
from services.runtime.tls import Role, dev_certificates
from tests.inprocess import running_server
from tests.integration.router_nodes import DIM, NODES, STATISTICS_AGE_MS, SimulatedMesh, eventually
from tests.traced import Recording, recording

WORDS = ("olive", "temple", "ostracism", "assembly", "trireme", "drachma", "agora", "stoa")
REVISION = "rev-1"
TIMEOUT_S = 10.0


class Scripted:
    """Stand-ins for the embed service and the generator: a text's vector says which of WORDS it contains."""

    def __init__(self) -> None:
        self.model = passage_pb2.EmbeddingModel(id="model-x", revision="1")
        self.dim = DIM
        self.embedded: list[embed_pb2.EmbedRequest] = []
        self.questions: list[generator_pb2.GenerateRequest] = []
        self.stall = asyncio.Event()
        self.stall.set()
        self.cancelled = asyncio.Event()

    async def embed(self, request: embed_pb2.EmbedRequest, _context: Any) -> embed_pb2.EmbedResponse:
        self.embedded.append(request)
        rows = np.array([[float(word in text) for word in WORDS] for text in request.texts], dtype="<f4") + 1e-3
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        return embed_pb2.EmbedResponse(
            dim=self.dim,
            vectors=rows.tobytes(),
            token_counts=[len(text.split()) for text in request.texts],
            truncated=["very long" in text for text in request.texts],
            model=self.model,
        )

    async def describe(self, _request: Any, _context: Any) -> embed_pb2.DescribeModelResponse:
        return embed_pb2.DescribeModelResponse(model=self.model, dim=self.dim)

    async def generate(
        self, request: generator_pb2.GenerateRequest, _context: Any
    ) -> AsyncIterator[generator_pb2.GenerateEvent]:
        self.questions.append(request)
        given = [entry.passage.passage_id for entry in request.passages]
        yield generator_pb2.GenerateEvent(
            prompt=generator_pb2.PromptInfo(
                model="scripted", passage_ids=given[:2], prompt_sha256=b"s" * 32, prompt_tokens=9
            )
        )
        try:
            if not given:
                yield _generated(text="I do not know.", abstained=True)
                return
            yield generator_pb2.GenerateEvent(delta="It was ")
            await self.stall.wait()
            yield generator_pb2.GenerateEvent(delta="so [1].")
            yield _generated(text="It was so [1].", cited_numbers=[1, 7], completion_tokens=4, finish_reason="stop")
        except asyncio.CancelledError:
            self.cancelled.set()
            raise

    def behaviors(self) -> Mapping[str, Callable[..., Any]]:
        return {
            "/ostraka.v1.EmbedService/Embed": self.embed,
            "/ostraka.v1.EmbedService/DescribeModel": self.describe,
            "/ostraka.v1.GeneratorService/Generate": self.generate,
        }


def _generated(**given: Any) -> generator_pb2.GenerateEvent:
    return generator_pb2.GenerateEvent(generated=generator_pb2.Generated(**given))


class Door:
    """A running router and a client's stub."""

    def __init__(self, mesh: SimulatedMesh, scripted: Scripted, embedder: Embedder, stub: Any) -> None:
        self.mesh, self.scripted, self.embedder = mesh, scripted, embedder
        self.stub: router_pb2_grpc.RouterServiceAsyncStub = stub

    async def upsert(self, *documents: tuple[str, str]) -> router_pb2.UpsertResponse:
        request = router_pb2.UpsertRequest(
            collection="docs",
            documents=[
                router_pb2.NewDocument(
                    document_id=name, source=f"file:///{name}", passages=[router_pb2.NewPassage(text=text)]
                )
                for name, text in documents
            ],
        )
        return await self.stub.Upsert(request, timeout=TIMEOUT_S)

    async def ask(self, question: str) -> list[router_pb2.AskEvent]:
        call = self.stub.Ask(router_pb2.AskRequest(collection="docs", question=question), timeout=TIMEOUT_S)
        return [event async for event in call]


@pytest.fixture
async def traces(tmp_path: Path) -> AsyncIterator[Recording]:
    with recording(tmp_path / "traces") as recorded:
        yield recorded


@pytest.fixture
async def door(tmp_path: Path, traces: Recording) -> AsyncIterator[Door]:
    mesh = SimulatedMesh(tmp_path)
    config = mesh.config
    dev_certificates(config)
    scripted = Scripted()
    async with AsyncExitStack() as stack:
        behind = await stack.enter_async_context(running_server(config, scripted.behaviors()))
        addresses = (f"127.0.0.1:{behind.port}",)
        embed = ChannelPool(config, addresses, server_role=Role.EMBED, identity="router")
        generator = ChannelPool(config, addresses, server_role=Role.EMBED, identity="router")
        catalogue = Catalogue({"docs": mesh.collection})
        embedder = Embedder(config, embed)
        retrieval = Retrieval(mesh.tools, mesh.legs)
        servicer = RouterServicer(
            config,
            catalogue,
            embedder,
            retrieval,
            Lookup(mesh.links, mesh.reader, mesh.tools),
            Ingest(embedder),
            mesh.writing,
            Asking(config, embedder, retrieval, Generation(generator)),
            Status(catalogue, mesh.links, (("embed", embed), ("generator", generator)), embedder),
            Listing(mesh.links, mesh.reader, mesh.tools),
            KeyedWrites(mesh.links, WriteBack(mesh.links, mesh.config.router.search_wait_ms), mesh.membership),
        )
        server = await MeshServer.start(
            config,
            service_name="router",
            role=Role.ROUTER,
            identity="router",
            address="127.0.0.1:0",
            servicers=((router_pb2_grpc.add_RouterServiceServicer_to_server, servicer),),
        )
        channel = open_channel(config, f"127.0.0.1:{server.port}", server_role=Role.ROUTER, identity="client")
        await wait_until_ready(catalogue, mesh.rounds, mesh.membership, embedder, SYSTEM_CLOCK)
        try:
            yield Door(mesh, scripted, embedder, router_pb2_grpc.RouterServiceStub(channel))
        finally:
            scripted.stall.set()
            await channel.close()
            await server.stop(0)
            await mesh.close()
            await embed.close()
            await generator.close()


def found_in(reply: router_pb2.SearchResponse) -> list[str]:
    return [hit.passage.passage_id for result in reply.results for hit in result.hits]


async def refused(call: Any) -> MeshError:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call
    return from_rpc_error(error.value)


async def test_an_answer_streams_and_its_provenance_is_the_trace_s(door: Door, traces: Recording) -> None:
    await door.upsert(("a", "an olive tree"), ("b", "olive oil and the temple"), ("c", "a drachma"))
    events = await door.ask("where is the olive?")
    assert [event.WhichOneof("event") for event in events] == ["retrieved", "delta", "delta", "answer"]
    retrieved, answer = events[0].retrieved, events[-1].answer
    assert [hit.passage.passage_id for hit in retrieved.hits][:2] == ["a#0", "b#0"]
    assert answer.text == "It was so [1]."
    assert [(c.number, c.passage_id) for c in answer.citations] == [(1, "a#0")]
    assert answer.citations[0].version == retrieved.hits[0].passage.version
    used = [(p.passage_id, p.in_prompt, p.cited) for p in answer.provenance]
    assert used[:2] == [("a#0", True, True), ("b#0", True, False)]
    assert not any(in_prompt or cited for _, in_prompt, cited in used[2:])
    assert all(
        (p.shard, p.replica) in {(c.shard, c.replica) for c in answer.coverage} and p.index_epoch and p.content_sha256
        for p in answer.provenance
    )
    assert answer.provenance[0].source == "file:///a"
    assert (answer.prompt_tokens, answer.completion_tokens, answer.finish_reason) == (9, 4, "stop")
    assert len(answer.answer_id) == 32

    (span,) = traces.named("retrieval docs")
    assert span.trace_id == answer.trace_id
    assert span.attributes[names.GEN_AI_DOCUMENTS] == documents_json(answer.provenance)
    assert parse_documents(str(span.attributes[names.GEN_AI_DOCUMENTS])).total == 3
    (chat,) = [span for span in traces.spans() if span.name.startswith("chat ")]
    assert chat.attributes[names.CONTEXT_PASSAGE_IDS] == ["a#0", "b#0"]
    assert span.end_ns >= chat.end_ns, "the retrieval span is held until it is known what was cited"


async def test_the_generator_gets_only_what_is_relevant_and_abstains_on_nothing(door: Door) -> None:
    await door.upsert(("a", "an olive tree"), ("b", "a trireme"))
    await door.ask("olive?")
    assert [entry.passage.passage_id for entry in door.scripted.questions[-1].passages] == ["a#0"]
    events = await door.ask("about the stoa?")
    assert not door.scripted.questions[-1].passages
    answer = events[-1].answer
    assert answer.abstained
    assert answer.finish_reason == "abstained"
    assert not answer.citations
    assert not any(p.in_prompt for p in answer.provenance)


async def test_lexical_needs_no_embedding_and_has_no_use_for_a_least_cosine(door: Door) -> None:
    await door.upsert(("a", "olive E1234"), ("b", "a trireme"))
    embedded = len(door.scripted.embedded)
    lexical = passage_pb2.SEARCH_MODE_LEXICAL
    reply = await door.stub.Search(
        router_pb2.SearchRequest(collection="docs", queries=[router_pb2.Query(text="E1234")], mode=lexical),
        timeout=TIMEOUT_S,
    )
    assert found_in(reply) == ["a#0"]
    assert (reply.mode, reply.lexical_statistics_age_ms) == (lexical, STATISTICS_AGE_MS)
    call = door.stub.Ask(router_pb2.AskRequest(collection="docs", question="E1234", mode=lexical), timeout=TIMEOUT_S)
    events = [event async for event in call]
    assert [entry.passage.passage_id for entry in door.scripted.questions[-1].passages] == ["a#0"]
    assert events[-1].answer.provenance[0].lexical_rank == 1
    assert len(door.scripted.embedded) == embedded


async def test_hybrid_asks_with_what_words_found_and_not_with_the_nearest_strangers(door: Door) -> None:
    await door.upsert(("a", "olive E1234"), ("b", "a trireme"))
    request = router_pb2.AskRequest(
        collection="docs", question="the stoa of E1234", mode=passage_pb2.SEARCH_MODE_HYBRID
    )
    events = [event async for event in door.stub.Ask(request, timeout=TIMEOUT_S)]
    assert {hit.passage.passage_id for hit in events[0].retrieved.hits} == {"a#0", "b#0"}
    assert [entry.passage.passage_id for entry in door.scripted.questions[-1].passages] == ["a#0"]


async def test_a_client_that_goes_away_stops_the_generator(door: Door, traces: Recording) -> None:
    await door.upsert(("a", "an olive tree"))
    door.scripted.stall.clear()
    call = door.stub.Ask(router_pb2.AskRequest(collection="docs", question="olive?"), timeout=TIMEOUT_S)
    async for event in call:
        if event.WhichOneof("event") == "delta":
            break
    call.cancel()
    await asyncio.wait_for(door.scripted.cancelled.wait(), TIMEOUT_S)
    await eventually(lambda: bool(traces.named("retrieval docs")))
    (span,) = traces.named("retrieval docs")
    assert parse_documents(str(span.attributes[names.GEN_AI_DOCUMENTS])).total == 1


async def test_a_repeated_query_is_not_embedded_again(door: Door, traces: Recording) -> None:
    await door.upsert(("a", "an olive tree"))
    request = router_pb2.SearchRequest(collection="docs", queries=[router_pb2.Query(text="olive")])
    embedded = len(door.scripted.embedded)
    first = await door.stub.Search(request, timeout=TIMEOUT_S)
    second = await door.stub.Search(request, timeout=TIMEOUT_S)
    assert len(door.scripted.embedded) == embedded + 1
    assert [found_in(first), found_in(second)] == [["a#0"], ["a#0"]]
    assert (first.embedding_model.id, first.weak) == ("model-x", False)
    spans = traces.named("embeddings model-x")
    assert sorted(bool(span.attributes.get(names.CACHE_HIT)) for span in spans) == [False, False, True]


async def test_texts_and_vectors_mix_in_one_batch(door: Door) -> None:
    await door.upsert(("a", "an olive tree"), ("b", "a temple"))
    temple = np.eye(DIM, dtype="<f4")[1]
    request = router_pb2.SearchRequest(
        collection="docs",
        queries=[
            router_pb2.Query(text="olive"),
            router_pb2.Query(vector=passage_pb2.Vector(dim=DIM, data=temple.tobytes())),
        ],
        k=1,
    )
    reply = await door.stub.Search(request, timeout=TIMEOUT_S)
    assert [[hit.passage.passage_id for hit in result.hits] for result in reply.results] == [["a#0"], ["b#0"]]


async def test_truncated_passages_are_reported_and_recorded(door: Door) -> None:
    request = router_pb2.UpsertRequest(
        collection="docs",
        documents=[
            router_pb2.NewDocument(
                document_id="d",
                passages=[
                    router_pb2.NewPassage(text="short olive"),
                    router_pb2.NewPassage(text="very long olive"),
                    router_pb2.NewPassage(text="x", vector=passage_pb2.Vector(dim=DIM, data=b"\0\0\x80?" * DIM)),
                ],
            )
        ],
    )
    (written,) = (await door.stub.Upsert(request, timeout=TIMEOUT_S)).documents
    assert written.outcome == router_pb2.WRITE_OUTCOME_ACKNOWLEDGED
    assert (written.passages, list(written.truncated_ordinals)) == (3, [1])
    assert [list(sent.texts) for sent in door.scripted.embedded][-1] == ["short olive", "very long olive"]
    reply = await door.stub.Get(router_pb2.GetRequest(collection="docs", document_ids=["d"]), timeout=TIMEOUT_S)
    assert [passage.truncated for passage in reply.passages] == [False, True, False]


async def test_another_model_than_the_collection_s_is_refused_but_vectors_still_work(door: Door) -> None:
    door.scripted.model = passage_pb2.EmbeddingModel(id="other", revision="1")
    text = router_pb2.SearchRequest(collection="docs", queries=[router_pb2.Query(text="olive")])
    error = await refused(door.stub.Search(text, timeout=TIMEOUT_S))
    assert isinstance(error, FailedPrecondition)
    assert error.field == "collection"
    vector = router_pb2.SearchRequest(
        collection="docs",
        queries=[router_pb2.Query(vector=passage_pb2.Vector(dim=DIM, data=b"\0\0\x80?" * DIM))],
    )
    assert (await door.stub.Search(vector, timeout=TIMEOUT_S)).embedding_model.id == "model-x"


async def test_refusals_cross_the_wire_with_their_field(door: Door) -> None:
    request = router_pb2.SearchRequest(
        collection="docs",
        queries=[router_pb2.Query(text="x"), router_pb2.Query(vector=passage_pb2.Vector(dim=1, data=b"abcd"))],
    )
    error = await refused(door.stub.Search(request, timeout=TIMEOUT_S))
    assert isinstance(error, InvalidArgument)
    assert error.field == "queries[1].vector"


async def test_a_missing_shard_is_unavailable_with_details(door: Door) -> None:
    for node in NODES:
        door.mesh.nodes[node].faults.down = True
    request = router_pb2.SearchRequest(collection="docs", queries=[router_pb2.Query(text="x")])
    error = await refused(door.stub.Search(request, timeout=1.0))
    assert isinstance(error, Unavailable)
    assert error.metadata["shards"] == "0,1"
    assert error.retry_ms > 0
    request.allow_partial = True
    reply = await door.stub.Search(request, timeout=1.0)
    assert {c.state for c in reply.coverage} == {passage_pb2.ShardCoverage.STATE_UNAVAILABLE}


async def test_writes_without_a_quorum_answer_in_time_and_honestly(door: Door) -> None:
    for node in ("a", "b"):
        door.mesh.nodes[node].faults.hanging.add("Write")
    request = router_pb2.DeleteRequest(collection="docs", document_ids=["x", "y"])
    reply = await door.stub.Delete(request, timeout=1.0)
    assert [(d.document_id, d.outcome) for d in reply.documents] == [
        ("x", router_pb2.WRITE_OUTCOME_UNCERTAIN),
        ("y", router_pb2.WRITE_OUTCOME_UNCERTAIN),
    ]
    assert all(d.version.hlc and d.acks == 1 for d in reply.documents)
    assert reply.session_token == b"\x01"


async def test_status_shows_nodes_services_and_collections(door: Door) -> None:
    reply = await door.stub.Status(router_pb2.StatusRequest(), timeout=TIMEOUT_S)
    assert [(node.node, node.reachable) for node in reply.nodes] == [(name, True) for name in NODES]
    assert [(service.service, service.serving) for service in reply.services] == [
        ("embed", False),
        ("generator", False),
    ]
    (collection,) = reply.collections
    assert (collection.shards, collection.replicas, collection.dim) == (2, 3, DIM)
    assert collection.embedding_model.revision == "1"
    assert reply.version


def test_texts_are_chunked_in_order_within_bounds() -> None:
    texts = ["a" * 3, "b" * 9, "c", "d", "e"]
    assert chunked(texts, 2, 10) == [["a" * 3], ["b" * 9, "c"], ["d", "e"]]
    assert chunked([], 2, 10) == []
