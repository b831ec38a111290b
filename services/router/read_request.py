"""Search, Ask and Get as they arrive, checked; every refusal names its field."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ostraka.v1 import passage_pb2, router_pb2
from services.quorum.gtid import GtidSet
from services.quorum.session import decode_session
from services.router.catalogue import Catalogue, Collection
from services.router.identifiers import document_id_problem, parse_passage_id
from services.router.levels import Level, read_level
from services.router.search_mode import HYBRID, TWO_STAGE, Ranking, ranking_of
from services.router.vectors import unit, vector_problem
from services.runtime.config import RouterConfig
from services.runtime.errors import FailedPrecondition, InvalidArgument
from services.runtime.filter_check import condition_of

K_SEARCH_DEFAULT = 10
K_ASK_DEFAULT = 8
ANSWER_TOKENS_DEFAULT = 256
ANSWER_TOKENS_MAX = 4_096
# Hits one call may return: with passages of a kilobyte this stays under the default message limit.
HITS_MAX = 16_384
# Candidates one shard's answer may hold for HYBRID and TWO_STAGE, where each hit asked for costs many: at the default
# depth that is 40 hybrid queries in one call.
CANDIDATES_MAX = 8_192

Session = dict[tuple[str, int], GtidSet]


@dataclass(frozen=True, slots=True)
class Reading:
    """How fresh a read must be."""

    collection: Collection
    level: Level.ValueType
    session: Session
    allow_partial: bool = False
    max_staleness_ms: int = 0
    """At level BOUNDED, else 0."""


@dataclass(frozen=True, slots=True)
class SearchPlan:
    """A Search that makes sense. `vectors[i]` is None where `texts[i]` has to be embedded first."""

    reading: Reading
    texts: Sequence[str]
    vectors: Sequence[NDArray[np.float32] | None]
    words: Sequence[str]
    """What BM25 searches for, by query; empty strings in DENSE mode."""
    ranking: Ranking
    exact: bool
    filter: passage_pb2.Filter | None = None


@dataclass(frozen=True, slots=True)
class AskPlan:
    """An Ask that makes sense."""

    reading: Reading
    question: str
    ranking: Ranking
    max_tokens: int
    filter: passage_pb2.Filter | None = None


@dataclass(frozen=True, slots=True)
class GetPlan:
    """A Get that makes sense: whole documents, and single passages by document and ordinal."""

    reading: Reading
    document_ids: Sequence[str]
    passages: Sequence[tuple[str, int]]
    include_vectors: bool


def search_plan(request: router_pb2.SearchRequest, catalogue: Catalogue, limits: RouterConfig) -> SearchPlan:
    """Raises InvalidArgument, NotFound (collection), FailedPrecondition (embedding_model)."""
    collection = catalogue.get(request.collection)
    check_model(request.embedding_model, collection)
    count = len(request.queries)
    if not 1 <= count <= limits.queries_max:
        raise InvalidArgument(f"holds {count} queries; a Search takes 1 to {limits.queries_max}", "queries")
    ranking = _ranking(request, K_SEARCH_DEFAULT, limits.k_max)
    _check_size(ranking, count)
    texts: list[str] = []
    vectors: list[NDArray[np.float32] | None] = []
    words: list[str] = []
    for index, query in enumerate(request.queries):
        kind = query.WhichOneof("input")
        if kind == "vector":
            vectors.append(_query_vector(query.vector, collection.dim, index))
            texts.append("")
        elif kind == "text":
            check_text(query.text, f"queries[{index}].text", limits.text_bytes_max)
            vectors.append(None)
            texts.append(query.text)
        else:
            raise InvalidArgument("needs a text or a vector", f"queries[{index}]")
        words.append(_words(query, ranking, index, limits.text_bytes_max))
    reading = reading_of(request, collection, allow_partial=request.allow_partial)
    chosen = checked_filter(request, collection)
    return SearchPlan(reading, texts, vectors, words, ranking, request.exact, chosen)


def ask_plan(request: router_pb2.AskRequest, catalogue: Catalogue, limits: RouterConfig) -> AskPlan:
    """Raises InvalidArgument, NotFound (collection)."""
    collection = catalogue.get(request.collection)
    check_text(request.question, "question", limits.text_bytes_max)
    tokens = request.max_tokens or ANSWER_TOKENS_DEFAULT
    if tokens > ANSWER_TOKENS_MAX:
        raise InvalidArgument(f"is {tokens}; an answer has at most {ANSWER_TOKENS_MAX} tokens", "max_tokens")
    reading = reading_of(request, collection, allow_partial=request.allow_partial)
    ranking = _ranking(request, K_ASK_DEFAULT, limits.k_max)
    _check_size(ranking, 1)
    chosen = checked_filter(request, collection)
    return AskPlan(reading, request.question, ranking, tokens, chosen)


def get_plan(request: router_pb2.GetRequest, catalogue: Catalogue, limits: RouterConfig) -> GetPlan:
    """Raises InvalidArgument, NotFound (collection)."""
    collection = catalogue.get(request.collection)
    count = len(request.document_ids) + len(request.passage_ids)
    if not 1 <= count <= limits.documents_max:
        raise InvalidArgument(f"{count} ids asked for; a Get takes 1 to {limits.documents_max}", "document_ids")
    for index, document_id in enumerate(request.document_ids):
        check_document_id(document_id, f"document_ids[{index}]")
    passages: list[tuple[str, int]] = []
    for index, passage_id in enumerate(request.passage_ids):
        parsed = parse_passage_id(passage_id)
        if isinstance(parsed, str):
            raise InvalidArgument(parsed, f"passage_ids[{index}]")
        passages.append(parsed)
    reading = reading_of(request, collection, by_id=True)
    return GetPlan(reading, list(request.document_ids), passages, request.include_vectors)


def check_document_id(document_id: str, name: str) -> None:
    """Raise InvalidArgument for the field `name`."""
    if problem := document_id_problem(document_id):
        raise InvalidArgument(problem, name)


def checked_filter(
    request: router_pb2.SearchRequest
    | router_pb2.AskRequest
    | router_pb2.ListDocumentsRequest
    | router_pb2.ExportRequest
    | router_pb2.DeleteRequest,
    collection: Collection,
) -> passage_pb2.Filter | None:
    """The filter of a request, if it has one. Raises InvalidArgument naming the part that makes no sense."""
    if not request.HasField("filter"):
        return None
    condition_of(request.filter, collection.metadata)
    return request.filter


def check_distinct(document_ids: Sequence[str], template: str) -> None:
    """Raise InvalidArgument for the first repeated document; `template` has a place for its index."""
    first: dict[str, int] = {}
    for index, document_id in enumerate(document_ids):
        earlier = first.setdefault(document_id, index)
        if earlier != index:
            raise InvalidArgument(
                f"repeats the document at position {earlier}; one call writes a document once",
                template.format(index=index),
            )


def check_text(text: str, name: str, bytes_max: int) -> None:
    """Raise InvalidArgument when there is nothing to embed, or too much."""
    if not text or text.isspace():
        raise InvalidArgument("must not be empty", name)
    # Four bytes are the longest encoding of a character, so most texts need no encoding to be measured.
    if 4 * len(text) > bytes_max and (size := len(text.encode())) > bytes_max:
        raise InvalidArgument(f"is {size} bytes of UTF-8; at most {bytes_max}", name)


def check_model(model: str, collection: Collection) -> None:
    """Raise FailedPrecondition when the caller's vectors come from another model than the collection's."""
    if model and model != collection.model.id:
        raise FailedPrecondition(
            f"is {model[:80]!r}; vectors of collection {collection.name!r} come from {collection.model.id!r}",
            "embedding_model",
        )


def _ranking(request: router_pb2.SearchRequest | router_pb2.AskRequest, k_default: int, k_max: int) -> Ranking:
    k = request.k if request.HasField("k") else k_default
    if not 1 <= k <= k_max:
        raise InvalidArgument(f"is {k}; 1 to {k_max}", "k")
    return ranking_of(request.mode, request.fusion if request.HasField("fusion") else None, k, k_max)


def _check_size(ranking: Ranking, queries: int) -> None:
    """Raise InvalidArgument when an answer could grow beyond what one message holds."""
    if ranking.k * queries > HITS_MAX:
        raise InvalidArgument(
            f"{queries} queries of k {ranking.k} ask for {ranking.k * queries} hits; one call returns at most "
            f"{HITS_MAX}",
            "k",
        )
    candidates = ranking.depth * ranking.lists * queries
    if ranking.mode in (HYBRID, TWO_STAGE) and candidates > CANDIDATES_MAX:
        raise InvalidArgument(
            f"{queries} queries take {candidates} candidates from a shard at depth {ranking.depth}; one call takes at "
            f"most {CANDIDATES_MAX}; ask fewer queries at once, or set a smaller depth",
            "fusion.depth",
        )


def _words(query: router_pb2.Query, ranking: Ranking, index: int, bytes_max: int) -> str:
    """What BM25 searches for. Raises InvalidArgument."""
    given = query.lexical_text
    if not ranking.needs_text:
        if given:
            raise InvalidArgument(
                "has no meaning in mode DENSE, which does not look at words", f"queries[{index}].lexical_text"
            )
        return ""
    if given:
        check_text(given, f"queries[{index}].lexical_text", bytes_max)
    if query.HasField("vector"):
        if not ranking.needs_vector:
            raise InvalidArgument("has no meaning in mode LEXICAL, which needs a text", f"queries[{index}].vector")
        if not given:
            raise InvalidArgument(
                f"must say what to search for beside the vector in mode {ranking.name.upper()}",
                f"queries[{index}].lexical_text",
            )
    return given or query.text


def reading_of(
    request: router_pb2.SearchRequest
    | router_pb2.AskRequest
    | router_pb2.GetRequest
    | router_pb2.ListDocumentsRequest
    | router_pb2.ExportRequest,
    collection: Collection,
    *,
    by_id: bool = False,
    allow_partial: bool = False,
) -> Reading:
    """How fresh a request asks its read to be. Raises InvalidArgument."""
    level = read_level(request.consistency, request.max_staleness_ms, by_id=by_id)
    return Reading(collection, level, session_of(request.session_token), allow_partial, request.max_staleness_ms)


def session_of(token: bytes) -> Session:
    if not token:
        return {}
    try:
        return decode_session(token)
    except ValueError as error:
        raise InvalidArgument(f"{error}; pass a token unchanged as a reply gave it", "session_token") from None


def _query_vector(vector: passage_pb2.Vector, dim: int, index: int) -> NDArray[np.float32]:
    data = vector.data
    problem = vector_problem(vector.dim, data, dim)
    if problem:
        raise InvalidArgument(problem, f"queries[{index}].vector")
    values = unit(data)
    if isinstance(values, str):
        raise InvalidArgument(values, f"queries[{index}].vector")
    return values
