"""Search modes over simulated shard nodes: what is asked of a shard, how its lists are joined, what the spans say."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from observability import names
from observability.provenance import entry
from ostraka.v1 import passage_pb2, shard_pb2
from services.router.fusion import Weights
from services.router.identifiers import passage_id
from services.router.packing import Document, Row
from services.router.retrieval import Retrieved
from services.router.search_mode import DENSE, HYBRID, LEXICAL, TWO_STAGE, Ranking
from services.router.vectors import half_rows
from services.router.writing import Write
from services.runtime.deadline import Deadline
from tests.integration.router_nodes import STATISTICS_AGE_MS, SimulatedMesh, eventually, vector
from tests.integration.test_router_reads import search
from tests.traced import recording

TEXTS = {
    "near": ((1.0, 0.1), "nothing in common"),
    "both": ((1.0, 0.2), "error E1234 again"),
    "words": ((0.0, 1.0), "error E1234 means that"),
    "far": ((0.0, 0.0, 1.0), "elsewhere"),
}
WORDS = "E1234 means error"


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[SimulatedMesh]:
    made = SimulatedMesh(tmp_path)
    documents = [document(name, values, text) for name, (values, text) in TEXTS.items()]
    await made.writing.write(made.collection, [Write(each) for each in documents], Deadline.after_ms(5_000))
    await eventually(lambda: len({node.replicas[0].core.applied for node in made.nodes.values()}) == 1)
    yield made
    await made.close()


def document(name: str, values: tuple[float, ...], text: str) -> Document:
    passage = passage_pb2.Passage(passage_id=passage_id(name, 0), document_id=name, text=text, source=f"test:{name}")
    return Document(name, (Row(0, half_rows([vector(*values)])[0], passage.SerializeToString()),))


def found(result: Retrieved) -> list[str]:
    return [hit.passage.document_id for hit in result.results[0].hits]


def provenance(result: Retrieved) -> dict[str, passage_pb2.Provenance]:
    return {hit.passage.document_id: hit.provenance for hit in result.results[0].hits}


def asked(mesh: SimulatedMesh) -> list[shard_pb2.SearchShardsRequest]:
    return [request for node in mesh.nodes.values() for request in node.requests("Search")]


async def test_hybrid_joins_both_lists_and_says_from_which_a_passage_came(mesh: SimulatedMesh) -> None:
    ranking = Ranking(HYBRID, 3, 100, Weights(1.0, 1.0, 60))
    result = await search(mesh, ranking=ranking, words=WORDS)
    assert found(result) == ["both", "words", "near"]
    told = provenance(result)
    assert (told["both"].dense_rank, told["both"].lexical_rank, told["both"].rank) == (2, 2, 1)
    assert told["both"].score == pytest.approx(2 / 62)
    assert told["both"].lexical_score == 2
    assert told["both"].dense_score > 0.9
    assert (told["near"].dense_rank, told["near"].lexical_rank, told["near"].lexical_score) == (1, 0, 0.0)
    assert all(hit.passage.text == TEXTS[hit.passage.document_id][1] for hit in result.results[0].hits)
    assert result.statistics_age_ms == STATISTICS_AGE_MS
    assert {(request.k, request.mode, request.queries[0].text) for request in asked(mesh)} == {(100, HYBRID, WORDS)}


async def test_a_passage_beyond_the_depth_of_the_dense_list_keeps_its_payload(mesh: SimulatedMesh) -> None:
    # Every shard sends its nearest passage; over all shards only one is within the depth.
    result = await search(mesh, ranking=Ranking(HYBRID, 1, 1, Weights(0.1, 1.0, 60)), words=WORDS)
    (hit,) = result.results[0].hits
    assert hit.passage.text == TEXTS["words"][1]
    assert (hit.provenance.dense_rank, hit.provenance.dense_score, hit.provenance.lexical_rank) == (0, 0.0, 1)


async def test_weights_decide_between_the_lists(mesh: SimulatedMesh) -> None:
    by_words = await search(mesh, ranking=Ranking(HYBRID, 4, 100, Weights(0.0, 1.0)), words=WORDS)
    assert found(by_words) == ["words", "both"]
    nearest = await search(mesh, ranking=Ranking(HYBRID, 2, 100, Weights(1.0, 0.0)), words=WORDS)
    assert found(nearest) == ["near", "both"]


async def test_lexical_sends_no_vector_and_ranks_by_words_alone(mesh: SimulatedMesh) -> None:
    result = await search(mesh, ranking=Ranking(LEXICAL, 10, 10), words=WORDS)
    assert found(result) == ["words", "both"]
    told = provenance(result)["words"]
    assert (told.lexical_score, told.score, told.lexical_rank, told.dense_rank, told.dense_score) == (3, 3, 1, 0, 0)
    assert not any(request.queries[0].HasField("vector") for request in asked(mesh))


async def test_two_stage_orders_the_nearest_by_words(mesh: SimulatedMesh) -> None:
    result = await search(mesh, ranking=Ranking(TWO_STAGE, 3, 3), words=WORDS)
    assert found(result) == ["both", "near", "far"]
    assert [(p.dense_rank, p.lexical_rank, p.score) for p in provenance(result).values()] == [
        (2, 1, 2.0),
        (1, 0, 0.0),
        (3, 0, 0.0),
    ]
    deeper = await search(mesh, ranking=Ranking(TWO_STAGE, 3, 4), words=WORDS)
    assert found(deeper) == ["words", "both", "near"]


async def test_requests_that_differ_share_no_call_and_leave_no_lane(mesh: SimulatedMesh) -> None:
    only = passage_pb2.Filter(equals=passage_pb2.Equals(field="source", value=passage_pb2.MetadataValue(text="x")))
    rankings = [Ranking(DENSE, 5, 5), Ranking(HYBRID, 5, 5), Ranking(LEXICAL, 5, 5), Ranking(HYBRID, 5, 6)]
    searches = [
        search(mesh, ranking=ranking, words=WORDS if ranking.needs_text else "", filter_=filter_)
        for ranking in rankings
        for filter_ in (None, only)
        for _ in range(3)
    ]
    await asyncio.gather(*searches)
    for request in asked(mesh):
        texts = {query.text for query in request.queries}
        assert texts == ({""} if request.mode == DENSE else {WORDS})
    kinds = {(request.mode, request.k, request.HasField("filter")) for request in asked(mesh)}
    assert len(kinds) == 2 * len(rankings)
    await eventually(lambda: not mesh.legs.lanes)


async def test_spans_say_how_the_lists_were_joined(mesh: SimulatedMesh, tmp_path: Path) -> None:
    with recording(tmp_path / "traces") as recorded:
        result = await search(mesh, ranking=Ranking(HYBRID, 2, 50, Weights(2.0, 1.0, 10)), words=WORDS)
        (fuse,) = recorded.named(names.SPAN_FUSE)
        (retrieval,) = recorded.named(f"{names.SPAN_RETRIEVAL} docs")
    assert fuse.attributes[names.FUSE_METHOD] == "reciprocal rank"
    assert fuse.attributes[names.FUSE_WEIGHTS] == [2.0, 1.0]
    assert fuse.attributes[names.FUSE_RANK_CONSTANT] == 10
    assert fuse.attributes[names.FUSE_DEPTH] == 50
    assert (fuse.attributes[names.FUSE_IN], fuse.attributes[names.FUSE_OUT]) == (6, 2)
    assert retrieval.attributes[names.SEARCH_MODE] == "hybrid"
    told = entry(result.results[0].hits[0].provenance)
    assert told["score"] == pytest.approx(result.results[0].hits[0].provenance.score)
    assert {"dense_score", "dense_rank", "lexical_score", "lexical_rank"} <= told["metadata"].keys()
