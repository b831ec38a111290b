"""Requests that must be refused, each with the status and the field that the refusal names."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import grpc
import numpy as np

from ostraka.v1 import passage_pb2, router_pb2

INVALID = grpc.StatusCode.INVALID_ARGUMENT
NOT_FOUND = grpc.StatusCode.NOT_FOUND
PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION

Request: TypeAlias = (
    router_pb2.SearchRequest
    | router_pb2.AskRequest
    | router_pb2.UpsertRequest
    | router_pb2.GetRequest
    | router_pb2.DeleteRequest
    | router_pb2.ListDocumentsRequest
    | router_pb2.ExportRequest
)


@dataclass(frozen=True, slots=True)
class BadRequest:
    """One request and how it must be refused."""

    name: str
    request: Request
    code: grpc.StatusCode
    field: str
    says: str = ""
    """Part of the message."""

    @property
    def method(self) -> str:
        """The router's method that takes this request."""
        return type(self.request).__name__.removesuffix("Request")


def vector(values: list[float]) -> passage_pb2.Vector:
    """A vector as it crosses the wire."""
    return passage_pb2.Vector(dim=len(values), data=np.asarray(values, "<f4").tobytes())


def bad_requests(collection: str, dim: int) -> Iterator[BadRequest]:
    """Every kind of request that the contract forbids, for a collection of `dim` dimensions that declares
    `METADATA_TOML` of the tests' mesh."""
    yield from _bad_searches(collection, dim)
    yield from _bad_modes(collection, dim)
    yield from _bad_asks(collection)
    yield from _bad_upserts(collection, dim)
    yield from _bad_ids(collection)
    yield from _bad_filters(collection, dim)
    yield from _bad_listings(collection)


def _bad_searches(collection: str, dim: int) -> Iterator[BadRequest]:
    good = [1.0] + [0.0] * (dim - 1)
    torn = passage_pb2.Vector(dim=dim, data=b"\0" * (4 * dim - 1))
    queries = {
        "search: empty text": (router_pb2.Query(text=""), "queries[0].text", "empty"),
        "search: blank text": (router_pb2.Query(text=" \n\t"), "queries[0].text", "empty"),
        "search: over-long text": (router_pb2.Query(text="x" * 100_000), "queries[0].text", "65536"),
        "search: neither text nor vector": (router_pb2.Query(), "queries[0]", "needs a text or a vector"),
        "search: short vector": (router_pb2.Query(vector=vector(good[1:])), "queries[0].vector", str(dim)),
        "search: torn vector": (router_pb2.Query(vector=torn), "queries[0].vector", str(4 * dim)),
        "search: NaN": (router_pb2.Query(vector=vector([math.nan, *good[1:]])), "queries[0].vector", "NaN"),
        "search: infinity": (router_pb2.Query(vector=vector([math.inf, *good[1:]])), "queries[0].vector", "infinity"),
        "search: zero vector": (router_pb2.Query(vector=vector([0.0] * dim)), "queries[0].vector", "zero"),
    }
    for name, (query, field, says) in queries.items():
        yield BadRequest(name, router_pb2.SearchRequest(collection=collection, queries=[query]), INVALID, field, says)
    query = router_pb2.Query(vector=vector(good))
    fields: dict[str, tuple[router_pb2.SearchRequest, grpc.StatusCode, str, str]] = {
        "search: no query": (router_pb2.SearchRequest(), INVALID, "queries", "0"),
        "search: too many queries": (router_pb2.SearchRequest(queries=[query] * 300), INVALID, "queries", "256"),
        "search: k 0": (router_pb2.SearchRequest(queries=[query], k=0), INVALID, "k", "0"),
        "search: k 10,000": (router_pb2.SearchRequest(queries=[query], k=10_000), INVALID, "k", "1000"),
        "search: foreign model": (
            router_pb2.SearchRequest(queries=[query], embedding_model="another-model"),
            PRECONDITION,
            "embedding_model",
            "another-model",
        ),
        "search: forged session": (
            router_pb2.SearchRequest(queries=[query], session_token=b"forged"),
            INVALID,
            "session_token",
            "",
        ),
    }
    for name, (request, code, field, says) in fields.items():
        request.collection = collection
        yield BadRequest(name, request, code, field, says)
    unknown = router_pb2.SearchRequest(collection="nowhere", queries=[query])
    yield BadRequest("search: unknown collection", unknown, NOT_FOUND, "collection", "nowhere")
    unnamed = router_pb2.SearchRequest(queries=[query])
    yield BadRequest("search: no collection", unnamed, NOT_FOUND, "collection")


def _bad_modes(collection: str, dim: int) -> Iterator[BadRequest]:
    text = router_pb2.Query(text="words")
    near = router_pb2.Query(vector=vector([1.0] + [0.0] * (dim - 1)))
    dense, lexical = passage_pb2.SEARCH_MODE_DENSE, passage_pb2.SEARCH_MODE_LEXICAL
    hybrid, staged = passage_pb2.SEARCH_MODE_HYBRID, passage_pb2.SEARCH_MODE_TWO_STAGE
    fusion = passage_pb2.Fusion
    requests: dict[str, tuple[passage_pb2.SearchMode.ValueType, router_pb2.Query, passage_pb2.Fusion | None, str]] = {
        "hybrid: a vector without words": (hybrid, near, None, "queries[0].lexical_text"),
        "two-stage: a vector without words": (staged, near, None, "queries[0].lexical_text"),
        "lexical: a vector": (lexical, near, None, "queries[0].vector"),
        "dense: fusion": (dense, text, fusion(), "fusion"),
        "lexical: fusion": (lexical, text, fusion(depth=20), "fusion"),
        "hybrid: negative weight": (hybrid, text, fusion(lexical_weight=-1), "fusion.lexical_weight"),
        "hybrid: NaN weight": (hybrid, text, fusion(dense_weight=math.nan), "fusion.dense_weight"),
        "hybrid: weights of 0": (hybrid, text, fusion(dense_weight=0, lexical_weight=0), "fusion.dense_weight"),
        "hybrid: rank constant 0": (hybrid, text, fusion(rank_constant=0), "fusion.rank_constant"),
        "hybrid: depth below k": (hybrid, text, fusion(depth=9), "fusion.depth"),
        "hybrid: depth beyond the limit": (hybrid, text, fusion(depth=100_000), "fusion.depth"),
        "two-stage: a weight": (staged, text, fusion(dense_weight=1), "fusion.dense_weight"),
    }
    for name, (mode, query, given, field) in requests.items():
        request = router_pb2.SearchRequest(collection=collection, queries=[query], mode=mode, fusion=given)
        yield BadRequest(name, request, INVALID, field)
    many = router_pb2.SearchRequest(collection=collection, queries=[text] * 200, mode=hybrid)
    yield BadRequest("hybrid: too many candidates", many, INVALID, "fusion.depth", "at once")
    asked = router_pb2.AskRequest(collection=collection, question="words", fusion=fusion())
    yield BadRequest("ask: fusion without a mode for it", asked, INVALID, "fusion", "DENSE")


def _bad_asks(collection: str) -> Iterator[BadRequest]:
    requests = {
        "ask: empty question": (router_pb2.AskRequest(collection=collection), INVALID, "question"),
        "ask: over-long question": (
            router_pb2.AskRequest(collection=collection, question="x" * 100_000),
            INVALID,
            "question",
        ),
        "ask: k 0": (router_pb2.AskRequest(collection=collection, question="why?", k=0), INVALID, "k"),
        "ask: k 10,000": (router_pb2.AskRequest(collection=collection, question="why?", k=10_000), INVALID, "k"),
        "ask: endless answer": (
            router_pb2.AskRequest(collection=collection, question="why?", max_tokens=1_000_000),
            INVALID,
            "max_tokens",
        ),
        "ask: unknown collection": (
            router_pb2.AskRequest(collection="nowhere", question="why?"),
            NOT_FOUND,
            "collection",
        ),
    }
    for name, (request, code, field) in requests.items():
        yield BadRequest(name, request, code, field)


def _bad_upserts(collection: str, dim: int) -> Iterator[BadRequest]:
    first = "documents[0].passages[0]"
    good = vector([1.0] + [0.0] * (dim - 1))
    large = {"note": passage_pb2.MetadataValue(text="x" * 20_000)}
    passages = {
        "upsert: empty text": (router_pb2.NewPassage(), f"{first}.text"),
        "upsert: over-long text": (router_pb2.NewPassage(text="x" * 100_000, vector=good), f"{first}.text"),
        "upsert: wrong length": (router_pb2.NewPassage(text="t", vector=vector([1.0] * (dim + 1))), f"{first}.vector"),
        "upsert: NaN": (router_pb2.NewPassage(text="t", vector=vector([math.nan] * dim)), f"{first}.vector"),
        "upsert: zeros": (router_pb2.NewPassage(text="t", vector=vector([0.0] * dim)), f"{first}.vector"),
        "upsert: metadata": (router_pb2.NewPassage(text="t", vector=good, metadata=large), f"{first}.metadata"),
        "upsert: span": (router_pb2.NewPassage(text="t", vector=good, char_start=9, char_end=1), f"{first}.char_end"),
    }
    for name, (passage, field) in passages.items():
        document = router_pb2.NewDocument(document_id="bad", passages=[passage])
        yield BadRequest(name, router_pb2.UpsertRequest(collection=collection, documents=[document]), INVALID, field)
    passage = router_pb2.NewPassage(text="t", vector=good)
    nothing = router_pb2.NewDocument(document_id="bad")
    whole = router_pb2.NewDocument(document_id="bad", passages=[passage])
    requests = {
        "upsert: nothing": (router_pb2.UpsertRequest(collection=collection), INVALID, "documents"),
        "upsert: no passages": (
            router_pb2.UpsertRequest(collection=collection, documents=[nothing]),
            INVALID,
            "documents[0].passages",
        ),
        "upsert: twice the same": (
            router_pb2.UpsertRequest(collection=collection, documents=[whole, whole]),
            INVALID,
            "documents[1].document_id",
        ),
        "upsert: unknown collection": (
            router_pb2.UpsertRequest(collection="nowhere", documents=[whole]),
            NOT_FOUND,
            "collection",
        ),
        "upsert: foreign model": (
            router_pb2.UpsertRequest(collection=collection, documents=[whole], embedding_model="another-model"),
            PRECONDITION,
            "embedding_model",
        ),
    }
    for name, (request, code, field) in requests.items():
        yield BadRequest(name, request, code, field)


def _bad_ids(collection: str) -> Iterator[BadRequest]:
    for what, document_id in (("empty", ""), ("long", "x" * 513), ("control character", "a\nb")):
        passage = router_pb2.NewPassage(text="t")
        document = router_pb2.NewDocument(document_id=document_id, passages=[passage])
        upsert = router_pb2.UpsertRequest(collection=collection, documents=[document])
        yield BadRequest(f"upsert: {what} id", upsert, INVALID, "documents[0].document_id")
        get = router_pb2.GetRequest(collection=collection, document_ids=[document_id])
        yield BadRequest(f"get: {what} id", get, INVALID, "document_ids[0]")
        delete = router_pb2.DeleteRequest(collection=collection, document_ids=[document_id])
        yield BadRequest(f"delete: {what} id", delete, INVALID, "document_ids[0]")
    for passage_id in ("no-ordinal", "doc#", "doc#-1", "doc#01", "doc#x", "#1"):
        get = router_pb2.GetRequest(collection=collection, passage_ids=[passage_id])
        yield BadRequest(f"get: passage id {passage_id!r}", get, INVALID, "passage_ids[0]")
    yield BadRequest("get: nothing", router_pb2.GetRequest(collection=collection), INVALID, "document_ids")
    yield BadRequest("delete: nothing", router_pb2.DeleteRequest(collection=collection), INVALID, "document_ids")


def _value(scalar: str | int | float) -> passage_pb2.MetadataValue:
    if isinstance(scalar, str):
        return passage_pb2.MetadataValue(text=scalar)
    if isinstance(scalar, int):
        return passage_pb2.MetadataValue(integer=scalar)
    return passage_pb2.MetadataValue(number=scalar)


def _equals(field: str, scalar: str | int | float) -> passage_pb2.Filter:
    return passage_pb2.Filter(equals=passage_pb2.Equals(field=field, value=_value(scalar)))


def _filters() -> Iterator[tuple[str, passage_pb2.Filter, str, str]]:
    """(what is wrong, the filter, the field, part of the message)"""
    deep = _equals("year", 1)
    for _ in range(8):
        deep = passage_pb2.Filter(negation=deep)
    wide = passage_pb2.FilterList(filters=[_equals("year", 1)] * 64)
    many = passage_pb2.OneOf(field="year", values=[_value(1)] * 1_001)
    crossed = passage_pb2.Range(field="year", at_least=_value(2), at_most=_value(1))
    doubled = passage_pb2.Range(field="year", at_least=_value(2), above=_value(1))
    yield "nothing", passage_pb2.Filter(), "filter", "states no condition"
    yield "unknown field", _equals("yaer", 1), "filter.equals.field", "'yaer'"
    yield "wrong type", _equals("year", "1"), "filter.equals.value", "declared as integer"
    yield "NaN", _equals("score", math.nan), "filter.equals.value", "finite"
    yield "empty list", passage_pb2.Filter(all_of=passage_pb2.FilterList()), "filter.all_of.filters", "empty"
    yield "deep", deep, "filter", "8 deep"
    yield "wide", passage_pb2.Filter(any_of=wide), "filter", "64"
    yield "many values", passage_pb2.Filter(one_of=many), "filter.one_of.values", "1001"
    yield "no bound", passage_pb2.Filter(range=passage_pb2.Range(field="year")), "filter.range", "at least one"
    yield "crossed bounds", passage_pb2.Filter(range=crossed), "filter.range", "contradicts"
    yield "two lower bounds", passage_pb2.Filter(range=doubled), "filter.range", "both at_least and above"


def _bad_filters(collection: str, dim: int) -> Iterator[BadRequest]:
    query = router_pb2.Query(vector=vector([1.0] + [0.0] * (dim - 1)))
    for what, wanted, field, says in _filters():
        search = router_pb2.SearchRequest(collection=collection, queries=[query], filter=wanted)
        yield BadRequest(f"search filter: {what}", search, INVALID, field, says)
        ask = router_pb2.AskRequest(collection=collection, question="why?", filter=wanted)
        yield BadRequest(f"ask filter: {what}", ask, INVALID, field, says)
        listing = router_pb2.ListDocumentsRequest(collection=collection, filter=wanted)
        yield BadRequest(f"list filter: {what}", listing, INVALID, field, says)
        export = router_pb2.ExportRequest(collection=collection, filter=wanted)
        yield BadRequest(f"export filter: {what}", export, INVALID, field, says)
        delete = router_pb2.DeleteRequest(collection=collection, filter=wanted)
        yield BadRequest(f"delete filter: {what}", delete, INVALID, field, says)
    good = vector([1.0] + [0.0] * (dim - 1))
    for name, scalar in (("year", "2020"), ("year", 2020.0), ("lang", 3), ("draft", 1), ("score", "high")):
        metadata = {name: _value(scalar)}
        passage = router_pb2.NewPassage(text="t", vector=good, metadata=metadata)
        document = router_pb2.NewDocument(document_id="bad", passages=[passage])
        upsert = router_pb2.UpsertRequest(collection=collection, documents=[document])
        where = f"documents[0].passages[0].metadata['{name}']"
        yield BadRequest(f"upsert: {name} = {scalar!r}", upsert, INVALID, where, f"{name} is declared as")
        plain = router_pb2.NewPassage(text="t", vector=good)
        document = router_pb2.NewDocument(document_id="bad", passages=[plain], metadata=metadata)
        upsert = router_pb2.UpsertRequest(collection=collection, documents=[document])
        where = f"documents[0].metadata['{name}']"
        yield BadRequest(f"upsert: inherited {name} = {scalar!r}", upsert, INVALID, where, f"{name} is declared as")


def _bad_listings(collection: str) -> Iterator[BadRequest]:
    requests: dict[str, tuple[Request, grpc.StatusCode, str, str]] = {
        "list: page of 0": (router_pb2.ListDocumentsRequest(page_size=0), INVALID, "page_size", "is 0"),
        "list: page of 1,001": (router_pb2.ListDocumentsRequest(page_size=1_001), INVALID, "page_size", "1000"),
        "list: no token": (router_pb2.ListDocumentsRequest(page_token="next"), INVALID, "page_token", "page token"),
        "list: token in another alphabet": (
            router_pb2.ListDocumentsRequest(page_token="\u2713" * 8),
            INVALID,
            "page_token",
            "page token",
        ),
        "list: endless token": (router_pb2.ListDocumentsRequest(page_token="A" * 5_000), INVALID, "page_token", ""),
        "list: forged session": (router_pb2.ListDocumentsRequest(session_token=b"x"), INVALID, "session_token", ""),
        "export: forged session": (router_pb2.ExportRequest(session_token=b"x"), INVALID, "session_token", ""),
        "delete: ids and source": (
            router_pb2.DeleteRequest(document_ids=["a"], source="s"),
            INVALID,
            "source",
            "beside document_ids",
        ),
        "delete: source and filter": (
            router_pb2.DeleteRequest(source="s", filter=_equals("year", 1)),
            INVALID,
            "filter",
            "beside source",
        ),
        "delete: long source": (router_pb2.DeleteRequest(source="s" * 5_000), INVALID, "source", "4096"),
    }
    for name, (request, code, field, says) in requests.items():
        request.collection = collection
        yield BadRequest(name, request, code, field, says)
    for request in (
        router_pb2.ListDocumentsRequest(collection="nowhere"),
        router_pb2.ExportRequest(collection="nowhere"),
        router_pb2.DeleteRequest(collection="nowhere", source="s"),
    ):
        yield BadRequest(f"{type(request).__name__}: unknown collection", request, NOT_FOUND, "collection", "nowhere")
