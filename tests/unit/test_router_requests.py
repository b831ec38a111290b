"""Bad requests are refused by name, good ones come out as plans."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

from ostraka.v1 import passage_pb2, router_pb2
from services.quorum.gtid import Gtid, GtidSet
from services.quorum.session import encode_session
from services.router.catalogue import Catalogue
from services.router.fusion import Weights
from services.router.identifiers import document_id_problem, parse_passage_id
from services.router.list_request import delete_plan
from services.router.read_request import ask_plan, get_plan, search_plan
from services.router.search_mode import DENSE, HYBRID, LEXICAL, TWO_STAGE, Mode, Ranking
from services.router.vectors import half_rows, unit, widened
from services.router.write_request import UpsertPlan, upsert_plan
from services.runtime import topology_file
from services.runtime.config import Config, parse
from services.runtime.errors import FailedPrecondition, InvalidArgument, MeshError, NotFound

DIM = 4
Number = passage_pb2.MetadataValue


@pytest.fixture
def config(tmp_path: Path) -> Config:
    raw = {
        "router": {"k_max": 100, "queries_max": 300, "text_bytes_max": 1_000, "metadata_bytes_max": 100},
        "nodes": {"a": {"address": "127.0.0.1:1"}},
        "collections": {
            "docs": {"dim": DIM, "shards": 2, "replicas": 1, "read_quorum": 1, "write_quorum": 1},
            "weak": {"dim": DIM, "shards": 1, "replicas": 1, "read_quorum": 1, "write_quorum": 1},
        },
    }
    return parse(raw, tmp_path / "mesh.toml", {})


@pytest.fixture
def catalogue(config: Config) -> Catalogue:
    return Catalogue.of(config, topology_file.bootstrap(config))


def vector(*values: float, dim: int = DIM) -> passage_pb2.Vector:
    return passage_pb2.Vector(dim=dim, data=np.array(values, dtype="<f4").tobytes())


GOOD = vector(3.0, 0.0, 4.0, 0.0)


def query(**given: object) -> router_pb2.Query:
    return router_pb2.Query(**given)  # type: ignore[arg-type]  # text or vector, chosen by the test


TEXT = query(text="words")
Fusion = passage_pb2.Fusion


def hybrid(**fusion: float) -> router_pb2.SearchRequest:
    return router_pb2.SearchRequest(
        collection="docs",
        queries=[TEXT],
        mode=HYBRID,
        fusion=Fusion(**fusion),  # type: ignore[arg-type]  # fields chosen by the test
    )


BAD_SEARCHES: list[tuple[router_pb2.SearchRequest, type[MeshError], str]] = [
    (router_pb2.SearchRequest(collection="nope", queries=[query(text="x")]), NotFound, "collection"),
    (router_pb2.SearchRequest(collection="docs"), InvalidArgument, "queries"),
    (router_pb2.SearchRequest(collection="docs", queries=[query(text="x")] * 301), InvalidArgument, "queries"),
    (router_pb2.SearchRequest(collection="docs", queries=[query(text="x")], k=10_000), InvalidArgument, "k"),
    (router_pb2.SearchRequest(collection="docs", queries=[query(text="x")], k=0), InvalidArgument, "k"),
    (router_pb2.SearchRequest(collection="docs", queries=[query(text="x")] * 300, k=100), InvalidArgument, "k"),
    (router_pb2.SearchRequest(collection="docs", queries=[query()]), InvalidArgument, "queries[0]"),
    (
        router_pb2.SearchRequest(collection="docs", queries=[query(text="x"), query(text=" \n")]),
        InvalidArgument,
        "queries[1].text",
    ),
    (
        router_pb2.SearchRequest(collection="docs", queries=[query(text="é" * 501)]),
        InvalidArgument,
        "queries[0].text",
    ),
    (
        router_pb2.SearchRequest(collection="docs", queries=[query(vector=vector(1.0, dim=1))]),
        InvalidArgument,
        "queries[0].vector",
    ),
    (
        router_pb2.SearchRequest(collection="docs", queries=[query(vector=vector(1.0))]),
        InvalidArgument,
        "queries[0].vector",
    ),
    (
        router_pb2.SearchRequest(collection="docs", queries=[query(vector=vector(0, 0, 0, 0))]),
        InvalidArgument,
        "queries[0].vector",
    ),
    (
        router_pb2.SearchRequest(
            collection="docs", queries=[query(vector=GOOD), query(vector=vector(1, math.nan, 0, 0))]
        ),
        InvalidArgument,
        "queries[1].vector",
    ),
    (
        router_pb2.SearchRequest(collection="docs", queries=[query(vector=vector(1, math.inf, 0, 0))]),
        InvalidArgument,
        "queries[0].vector",
    ),
    (router_pb2.SearchRequest(collection="docs", queries=[TEXT], mode=99), InvalidArgument, "mode"),  # type: ignore[arg-type]
    (router_pb2.SearchRequest(collection="docs", queries=[TEXT], fusion=Fusion()), InvalidArgument, "fusion"),
    (
        router_pb2.SearchRequest(collection="docs", queries=[TEXT], mode=LEXICAL, fusion=Fusion(depth=20)),
        InvalidArgument,
        "fusion",
    ),
    (hybrid(dense_weight=-1.0), InvalidArgument, "fusion.dense_weight"),
    (hybrid(lexical_weight=math.nan), InvalidArgument, "fusion.lexical_weight"),
    (hybrid(lexical_weight=math.inf), InvalidArgument, "fusion.lexical_weight"),
    (hybrid(dense_weight=0.0, lexical_weight=0.0), InvalidArgument, "fusion.dense_weight"),
    (hybrid(rank_constant=0), InvalidArgument, "fusion.rank_constant"),
    (hybrid(depth=9), InvalidArgument, "fusion.depth"),
    (hybrid(depth=101), InvalidArgument, "fusion.depth"),
    (
        router_pb2.SearchRequest(collection="docs", queries=[TEXT], mode=TWO_STAGE, fusion=Fusion(rank_constant=9)),
        InvalidArgument,
        "fusion.rank_constant",
    ),
    (router_pb2.SearchRequest(collection="docs", queries=[TEXT] * 41, mode=HYBRID), InvalidArgument, "fusion.depth"),
    (
        router_pb2.SearchRequest(collection="docs", queries=[TEXT, query(vector=GOOD)], mode=HYBRID),
        InvalidArgument,
        "queries[1].lexical_text",
    ),
    (
        router_pb2.SearchRequest(collection="docs", queries=[query(vector=GOOD)], mode=TWO_STAGE),
        InvalidArgument,
        "queries[0].lexical_text",
    ),
    (
        router_pb2.SearchRequest(collection="docs", queries=[query(vector=GOOD, lexical_text="x")], mode=LEXICAL),
        InvalidArgument,
        "queries[0].vector",
    ),
    (
        router_pb2.SearchRequest(collection="docs", queries=[query(vector=GOOD, lexical_text=" ")], mode=HYBRID),
        InvalidArgument,
        "queries[0].lexical_text",
    ),
    (
        router_pb2.SearchRequest(collection="docs", queries=[query(text="x", lexical_text="y")]),
        InvalidArgument,
        "queries[0].lexical_text",
    ),
    (
        router_pb2.SearchRequest(collection="docs", queries=[query(vector=GOOD)], embedding_model="other"),
        FailedPrecondition,
        "embedding_model",
    ),
    (
        router_pb2.SearchRequest(collection="docs", queries=[query(vector=GOOD)], session_token=b"\xff\xff"),
        InvalidArgument,
        "session_token",
    ),
    (
        router_pb2.SearchRequest(
            collection="docs",
            queries=[query(vector=GOOD)],
            consistency=99,  # type: ignore[arg-type]  # an enum value of the future
        ),
        InvalidArgument,
        "consistency",
    ),
]


@pytest.mark.parametrize(("request_", "kind", "field"), BAD_SEARCHES)
def test_bad_searches(
    request_: router_pb2.SearchRequest, kind: type[MeshError], field: str, catalogue: Catalogue, config: Config
) -> None:
    with pytest.raises(kind) as refused:
        search_plan(request_, catalogue, config.router)
    assert refused.value.field == field
    assert refused.value.definite


def test_a_good_search(catalogue: Catalogue, config: Config) -> None:
    token = encode_session({("docs", 1): GtidSet.of(Gtid(9, 1))})
    request = router_pb2.SearchRequest(
        collection="docs", queries=[query(text="words"), query(vector=GOOD)], session_token=token
    )
    plan = search_plan(request, catalogue, config.router)
    assert plan.ranking == Ranking(DENSE, 10, 10)
    assert plan.words == ["", ""]
    assert plan.reading.level == passage_pb2.CONSISTENCY_LEVEL_QUORUM
    assert plan.reading.session == {("docs", 1): GtidSet.of(Gtid(9, 1))}
    assert plan.vectors[0] is None
    assert plan.vectors[1] is not None
    assert np.allclose(plan.vectors[1], [0.6, 0.0, 0.8, 0.0])


@pytest.mark.parametrize(
    ("mode", "fusion", "expected"),
    [
        (LEXICAL, None, Ranking(LEXICAL, 10, 10)),
        (HYBRID, None, Ranking(HYBRID, 10, 100, Weights())),
        (HYBRID, Fusion(depth=10, dense_weight=0.0), Ranking(HYBRID, 10, 10, Weights(0.0, 1.0))),
        (HYBRID, Fusion(rank_constant=1, lexical_weight=2.5), Ranking(HYBRID, 10, 100, Weights(1.0, 2.5, 1))),
        (TWO_STAGE, Fusion(depth=50), Ranking(TWO_STAGE, 10, 50, Weights())),
    ],
)
def test_modes_become_rankings(
    mode: Mode.ValueType, fusion: passage_pb2.Fusion | None, expected: Ranking, catalogue: Catalogue, config: Config
) -> None:
    request = router_pb2.SearchRequest(collection="docs", queries=[TEXT], mode=mode, fusion=fusion)
    plan = search_plan(request, catalogue, config.router)
    assert plan.ranking == expected
    assert plan.words == ["words"]
    question = router_pb2.AskRequest(collection="docs", question="words", k=10, mode=mode, fusion=fusion)
    assert ask_plan(question, catalogue, config.router).ranking == expected


def test_a_vector_brings_its_words_and_a_text_may_bring_others(catalogue: Catalogue, config: Config) -> None:
    queries = [query(vector=GOOD, lexical_text="E1234"), query(text="what is E1234?", lexical_text="E1234"), TEXT]
    request = router_pb2.SearchRequest(collection="docs", queries=queries, mode=HYBRID)
    plan = search_plan(request, catalogue, config.router)
    assert plan.words == ["E1234", "E1234", "words"]
    assert plan.texts == ["", "what is E1234?", "words"]


def passage(text: str = "text", **more: object) -> router_pb2.NewPassage:
    return router_pb2.NewPassage(text=text, **more)  # type: ignore[arg-type]  # fields chosen by the test


def upsert(*documents: router_pb2.NewDocument, **more: object) -> router_pb2.UpsertRequest:
    return router_pb2.UpsertRequest(
        collection="docs",
        documents=documents,
        **more,  # type: ignore[arg-type]
    )


def new(document_id: str = "d", *passages: router_pb2.NewPassage, **more: object) -> router_pb2.NewDocument:
    return router_pb2.NewDocument(
        document_id=document_id,
        passages=passages or [passage()],
        **more,  # type: ignore[arg-type]
    )


BAD_UPSERTS: list[tuple[router_pb2.UpsertRequest, type[MeshError], str]] = [
    (upsert(), InvalidArgument, "documents"),
    (upsert(*[new()] * 257), InvalidArgument, "documents"),
    (upsert(new(""), new("x")), InvalidArgument, "documents[0].document_id"),
    (upsert(new("x"), new("a\x00b")), InvalidArgument, "documents[1].document_id"),
    (upsert(new("x" * 513)), InvalidArgument, "documents[0].document_id"),
    (upsert(new("x"), new("y"), new("x")), InvalidArgument, "documents[2].document_id"),
    (upsert(router_pb2.NewDocument(document_id="x")), InvalidArgument, "documents[0].passages"),
    (upsert(new("x", passage(), passage(""))), InvalidArgument, "documents[0].passages[1].text"),
    (upsert(new("x", passage("y" * 1_001))), InvalidArgument, "documents[0].passages[0].text"),
    (upsert(new("x", passage(vector=vector(1.0)))), InvalidArgument, "documents[0].passages[0].vector"),
    (upsert(new("x", passage(vector=vector(0, 0, 0, 0)))), InvalidArgument, "documents[0].passages[0].vector"),
    (
        upsert(new("x", passage(metadata={"key": Number(text="v" * 101)}))),
        InvalidArgument,
        "documents[0].passages[0].metadata",
    ),
    (upsert(new("x", metadata={"": Number(flag=True)})), InvalidArgument, "documents[0].metadata"),
    (upsert(new("x", metadata={"n": Number(number=math.nan)})), InvalidArgument, "documents[0].metadata['n']"),
    (upsert(new("x", metadata={"n": Number()})), InvalidArgument, "documents[0].metadata['n']"),
    (
        upsert(new("x", passage(metadata={"b": Number(text="v" * 60)}), metadata={"a": Number(text="v" * 60)})),
        InvalidArgument,
        "documents[0].passages[0].metadata",
    ),
    (upsert(new("x", passage(char_start=5, char_end=4))), InvalidArgument, "documents[0].passages[0].char_end"),
    (
        upsert(new("x", retry_version=passage_pb2.Version(hlc=5))),
        InvalidArgument,
        "documents[0].retry_version",
    ),
    (upsert(new("x"), embedding_model="other"), FailedPrecondition, "embedding_model"),
]


def plan_of(request: router_pb2.UpsertRequest, catalogue: Catalogue, config: Config) -> UpsertPlan:
    return upsert_plan(request, catalogue, config.router, config.shard.batch_bytes_max)


@pytest.mark.parametrize(("request_", "kind", "field"), BAD_UPSERTS)
def test_bad_upserts(
    request_: router_pb2.UpsertRequest, kind: type[MeshError], field: str, catalogue: Catalogue, config: Config
) -> None:
    with pytest.raises(kind) as refused:
        plan_of(request_, catalogue, config)
    assert refused.value.field == field


def test_a_good_upsert(catalogue: Catalogue, config: Config) -> None:
    request = upsert(
        new(
            "dir/file#2",
            passage("some text", title="Title", metadata={"b": Number(integer=2)}),
            passage("", vector=GOOD),
            source="file:///x",
            metadata={"a": Number(text="1"), "b": Number(integer=1)},
            retry_version=passage_pb2.Version(hlc=7, source=8),
        )
    )
    (document,) = plan_of(request, catalogue, config).documents
    assert document.retry_hlc_source == (7, 8)
    first, second = document.passages
    assert first.passage.passage_id == "dir/file#2#0"
    assert first.passage.content_sha256 == sha256(b"Title\nsome text").digest()
    assert first.embedded_text == "Title some text"
    assert {key: value.integer or value.text for key, value in first.passage.metadata.items()} == {"a": "1", "b": 2}
    assert first.vector is None
    assert second.vector is not None
    assert not second.passage.HasField("vector")
    assert not second.passage.HasField("version")


def test_a_row_over_the_batch_limit_is_refused(catalogue: Catalogue, config: Config) -> None:
    with pytest.raises(InvalidArgument) as refused:
        upsert_plan(upsert(new("x", passage("y" * 900))), catalogue, config.router, 800)
    assert refused.value.field == "documents[0].passages[0]"


def test_a_document_over_its_limit_is_refused(catalogue: Catalogue, config: Config) -> None:
    document = new("x", *(passage("y" * 100) for _ in range(10)))
    with pytest.raises(InvalidArgument) as caught:
        upsert_plan(upsert(document), catalogue, replace(config.router, document_bytes_max=1_000), 1_000)
    assert caught.value.field == "documents[0].passages"


def test_gets_deletes_and_questions(catalogue: Catalogue, config: Config) -> None:
    limits = config.router
    cases: list[tuple[Callable[[], object], str]] = [
        (lambda: get_plan(router_pb2.GetRequest(collection="docs"), catalogue, limits), "document_ids"),
        (
            lambda: get_plan(router_pb2.GetRequest(collection="docs", passage_ids=["x#1", "x"]), catalogue, limits),
            "passage_ids[1]",
        ),
        (
            lambda: delete_plan(
                router_pb2.DeleteRequest(collection="docs", document_ids=["x", "x"]), catalogue, limits
            ),
            "document_ids[1]",
        ),
        (lambda: delete_plan(router_pb2.DeleteRequest(collection="docs"), catalogue, limits), "document_ids"),
        (lambda: ask_plan(router_pb2.AskRequest(collection="docs"), catalogue, limits), "question"),
        (
            lambda: ask_plan(router_pb2.AskRequest(collection="docs", question="?", k=101), catalogue, limits),
            "k",
        ),
        (
            lambda: ask_plan(
                router_pb2.AskRequest(collection="docs", question="?", max_tokens=100_000), catalogue, limits
            ),
            "max_tokens",
        ),
    ]
    for case, field in cases:
        with pytest.raises(InvalidArgument) as refused:
            case()
        assert refused.value.field == field
    assert ask_plan(router_pb2.AskRequest(collection="docs", question="?"), catalogue, limits).ranking.k == 8


@pytest.mark.parametrize(("text", "parsed"), [("a#0", ("a", 0)), ("a#b#12", ("a#b", 12)), ("é#7", ("é", 7))])
def test_passage_ids(text: str, parsed: tuple[str, int]) -> None:
    assert parse_passage_id(text) == parsed


@pytest.mark.parametrize("text", ["", "a", "a#", "#1", "a#-1", "a#01", "a#x", "a#²", "a#1234567", "a\n#1"])
def test_malformed_passage_ids(text: str) -> None:
    assert isinstance(parse_passage_id(text), str)


def test_document_ids_may_hold_anything_printable() -> None:
    assert document_id_problem("日本/ä b#c") == ""
    assert document_id_problem("line\nbreak")
    assert document_id_problem("\x7f")


@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1.0, 1e30])
def test_vectors_of_any_length_become_units(scale: float) -> None:
    made = unit((np.array([3.0, 0.0, 4.0], dtype=np.float32) * np.float32(scale)).astype("<f4").tobytes())
    assert not isinstance(made, str)
    assert made.dtype == np.float32
    assert np.allclose(made, [0.6, 0.0, 0.8], atol=1e-6)


def test_halves_round_once_and_widen_exactly() -> None:
    (half,) = half_rows([np.array([0.6, 0.8], dtype=np.float32)])
    wide = np.frombuffer(widened(half), dtype="<f4")
    assert half_rows([wide]) == [half]
    assert half_rows([]) == []
