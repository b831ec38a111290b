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
    """Every kind of request that the contract forbids, for a collection of `dim` dimensions."""
    yield from _bad_searches(collection, dim)
    yield from _bad_asks(collection)
    yield from _bad_upserts(collection, dim)
    yield from _bad_ids(collection)


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
