"""The asynchronous client of a mesh.

    async with Client(["127.0.0.1:7402"], certs=".mesh/certs", collection="docs") as client:
        async for event in client.ask("What does yield from do?"):
            ...

Every call has a deadline in seconds that covers its repetitions too. Reads are repeated after transient
failures, writes only after a definite one or with an idempotency key; a write that ended UNCERTAIN is repeated with
its version, which makes it the same write. The session token of every reply is kept, so `Consistency.SESSION` reads
see what this client wrote and never go back.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ostraka.answers import Answer, AskEvent, event_from_proto
from ostraka.connection import Deadline, RpcMetadata
from ostraka.document_calls import DocumentCalls, write_result
from ostraka.documents import NewDocument, VectorLike, vector_to_proto
from ostraka.errors import InvalidRequest, OstrakaError, ServerError
from ostraka.filter_expressions import filter_to_proto
from ostraka.filters import FilterLike
from ostraka.mesh_status import MeshStatus
from ostraka.opened_client import ClientOptions, checked, request_of
from ostraka.results import (
    Consistency,
    DocumentWrite,
    EmbeddingModel,
    GetResult,
    Hit,
    Outcome,
    Passage,
    SearchResult,
    ShardCoverage,
    WriteLevel,
    WriteResult,
)
from ostraka.search_modes import Fusion, SearchMode
from ostraka.v1 import router_pb2 as pb

if TYPE_CHECKING:
    from ostraka.v1.router_pb2_grpc import RouterServiceAsyncStub


__all__ = ["Client", "ClientOptions"]


class Client(DocumentCalls):
    """One caller of a mesh; open it with `async with` or `connect`, and share it between tasks of one loop."""

    async def search(self, query: str | VectorLike, **arguments: Any) -> SearchResult:
        """The best passages for one text or vector; the arguments are those of `search_batch`."""
        return (await self.search_batch([query], **arguments))[0]

    async def search_batch(
        self,
        queries: Sequence[str | VectorLike],
        *,
        k: int = 10,
        collection: str | None = None,
        consistency: Consistency = Consistency.QUORUM,
        max_staleness_ms: int = 0,
        allow_partial: bool = False,
        exact: bool = False,
        embedding_model: str = "",
        mode: SearchMode | str = SearchMode.DENSE,
        fusion: Fusion | None = None,
        where: FilterLike | None = None,
        lexical_texts: Sequence[str] | None = None,
        timeout_s: float | None = None,
    ) -> list[SearchResult]:
        """One result per query, in order; texts and vectors may be mixed. Raises OstrakaError.

        `max_staleness_ms`: with `Consistency.BOUNDED`, and only then.
        `where`: only passages that meet this condition, as `ostraka.where` makes it or as an expression.
        `lexical_texts`, one per query: what BM25 searches for, where that is not the query's own text; a query by
        vector needs one in the modes hybrid and two-stage.
        """
        words = [""] * len(queries) if lexical_texts is None else list(lexical_texts)
        if len(words) != len(queries):
            raise InvalidRequest(f"lexical_texts: {len(words)} texts for {len(queries)} queries", field="lexical_texts")
        request = request_of(
            pb.SearchRequest,
            collection=self._name(collection),
            queries=[
                _query(query, text, f"queries[{n}]") for n, (query, text) in enumerate(zip(queries, words, strict=True))
            ],
            k=k,
            consistency=consistency.value,
            max_staleness_ms=max_staleness_ms,
            session_token=self._session.token,
            allow_partial=allow_partial,
            exact=exact,
            embedding_model=embedding_model,
            mode=SearchMode.of(mode).value,
            fusion=None if fusion is None else fusion.to_proto(),
            filter=filter_to_proto(where),
        )

        def call(stub: RouterServiceAsyncStub, *, timeout: float, metadata: RpcMetadata) -> Any:
            return stub.Search(request, timeout=timeout, metadata=metadata)

        response: pb.SearchResponse = await self._open.unary(call, self._deadline(timeout_s), read=True)
        self._session.add(response.session_token)
        if len(response.results) != len(queries):
            raise ServerError(f"{len(queries)} queries were answered by {len(response.results)} results")
        return [_search_result(result, response) for result in response.results]

    async def ask(
        self,
        question: str,
        *,
        k: int = 8,
        collection: str | None = None,
        consistency: Consistency = Consistency.QUORUM,
        max_staleness_ms: int = 0,
        allow_partial: bool = False,
        max_tokens: int = 256,
        mode: SearchMode | str = SearchMode.DENSE,
        fusion: Fusion | None = None,
        where: FilterLike | None = None,
        timeout_s: float | None = None,
    ) -> AsyncGenerator[AskEvent, None]:
        """Stream an answer: `Retrieved`, then `Delta`s, then `Answer`. Leaving the loop cancels the call."""
        request = request_of(
            pb.AskRequest,
            collection=self._name(collection),
            question=question,
            k=k,
            consistency=consistency.value,
            max_staleness_ms=max_staleness_ms,
            session_token=self._session.token,
            allow_partial=allow_partial,
            max_tokens=max_tokens,
            mode=SearchMode.of(mode).value,
            fusion=None if fusion is None else fusion.to_proto(),
            filter=filter_to_proto(where),
        )

        def call(stub: RouterServiceAsyncStub, timeout: float, metadata: RpcMetadata) -> Any:
            return stub.Ask(request, timeout=timeout, metadata=metadata)

        deadline = self._deadline(self._options.ask_timeout_s if timeout_s is None else timeout_s)
        message: pb.AskEvent
        async with aclosing(self._open.stream(call, deadline)) as messages:
            async for message in messages:
                if message.WhichOneof("event") == "answer":
                    self._session.add(message.answer.session_token)
                if (event := event_from_proto(message)) is not None:
                    yield event

    async def answer(self, question: str, **arguments: Any) -> Answer:
        """The whole answer at once; the arguments are those of `ask`."""
        async with aclosing(self.ask(question, **arguments)) as events:
            async for event in events:
                if isinstance(event, Answer):
                    return event
        raise ServerError("the stream ended without an answer")

    async def upsert(
        self,
        documents: Iterable[NewDocument],
        *,
        collection: str | None = None,
        embedding_model: str = "",
        level: WriteLevel = WriteLevel.QUORUM,
        idempotency_key: str = "",
        timeout_s: float | None = None,
        check: bool = True,
    ) -> WriteResult:
        """Store documents, each replacing its predecessor atomically.

        `idempotency_key` names this write: it may be repeated with the same documents, also by another client through
        another router, and answers with the version of the first attempt, so that it never overrides a later write.

        UNCERTAIN documents are repeated with their version and REFUSED ones as they are, a bounded number of
        times. With `check`, raises WriteUncertain or WriteRefused unless all were acknowledged; without, the
        result says what became of each. Raises Unavailable, DeadlineExceeded ... when no outcome is known.
        """
        deadline = self._deadline(timeout_s)
        batch = list(documents)
        outcomes: dict[int, DocumentWrite] = {}
        told = pb.UpsertResponse()
        waiting = list(range(len(batch)))
        for attempt in range(1, self._options.retry.attempts_max + 1):
            try:
                response = await self._upsert_once(
                    [batch[n] for n in waiting], collection, embedding_model, level, idempotency_key, deadline
                )
            except OstrakaError:
                # After a first round the outcomes known so far are worth more than the last round's failure.
                if attempt == 1:
                    raise
                break
            told = response if attempt == 1 else told
            outcomes.update(zip(waiting, map(DocumentWrite.from_proto, response.documents), strict=True))
            waiting = [n for n in waiting if outcomes[n].outcome is not Outcome.ACKNOWLEDGED]
            if not waiting or deadline.remaining_s() <= 0:
                break
            for n in waiting:
                if outcomes[n].outcome is Outcome.UNCERTAIN:
                    batch[n] = replace(batch[n], retry_version=outcomes[n].version)
        return checked(write_result(tuple(outcomes[n] for n in range(len(batch))), told), check)

    async def _upsert_once(
        self,
        documents: Sequence[NewDocument],
        collection: str | None,
        embedding_model: str,
        level: WriteLevel,
        idempotency_key: str,
        deadline: Deadline,
    ) -> pb.UpsertResponse:
        request = request_of(
            pb.UpsertRequest,
            collection=self._name(collection),
            documents=[document.to_proto() for document in documents],
            embedding_model=embedding_model,
            level=level.value,
            idempotency_key=idempotency_key,
        )

        def call(stub: RouterServiceAsyncStub, *, timeout: float, metadata: RpcMetadata) -> Any:
            return stub.Upsert(request, timeout=timeout, metadata=metadata)

        response: pb.UpsertResponse = await self._open.unary(call, deadline, read=bool(idempotency_key))
        self._session.add(response.session_token)
        if len(response.documents) != len(documents):
            raise ServerError(f"{len(documents)} documents were answered by {len(response.documents)} outcomes")
        return response

    async def get(
        self,
        document_ids: Iterable[str] = (),
        *,
        passage_ids: Iterable[str] = (),
        collection: str | None = None,
        consistency: Consistency = Consistency.QUORUM,
        max_staleness_ms: int = 0,
        include_vectors: bool = False,
        timeout_s: float | None = None,
    ) -> GetResult:
        """Passages of whole documents, or single ones as `document#ordinal`; what does not exist is `missing`."""
        request = request_of(
            pb.GetRequest,
            collection=self._name(collection),
            document_ids=list(document_ids),
            passage_ids=list(passage_ids),
            consistency=consistency.value,
            max_staleness_ms=max_staleness_ms,
            session_token=self._session.token,
            include_vectors=include_vectors,
        )

        def call(stub: RouterServiceAsyncStub, *, timeout: float, metadata: RpcMetadata) -> Any:
            return stub.Get(request, timeout=timeout, metadata=metadata)

        response: pb.GetResponse = await self._open.unary(call, self._deadline(timeout_s), read=True)
        self._session.add(response.session_token)
        return GetResult(
            passages=tuple(map(Passage.from_proto, response.passages)),
            missing=tuple(response.missing),
            coverage=tuple(map(ShardCoverage.from_proto, response.coverage)),
            consistency=Consistency.from_proto(response.consistency),
            weak=response.weak,
        )

    async def status(self, *, timeout_s: float | None = None) -> MeshStatus:
        """What every node, service and collection says of itself."""
        request = pb.StatusRequest()

        def call(stub: RouterServiceAsyncStub, *, timeout: float, metadata: RpcMetadata) -> Any:
            return stub.Status(request, timeout=timeout, metadata=metadata)

        response: pb.StatusResponse = await self._open.unary(call, self._deadline(timeout_s), read=True)
        return MeshStatus.from_proto(response)


def _query(query: str | VectorLike, lexical_text: str, field_name: str) -> pb.Query:
    try:
        made = pb.Query(lexical_text=lexical_text)
    except TypeError as error:
        raise InvalidRequest(f"{field_name}.lexical_text: {error}", field=f"{field_name}.lexical_text") from error
    if isinstance(query, str):
        made.text = query
    else:
        made.vector.CopyFrom(vector_to_proto(query, field_name))
    return made


def _search_result(result: pb.QueryResult, response: pb.SearchResponse) -> SearchResult:
    return SearchResult(
        hits=tuple(map(Hit.from_proto, result.hits)),
        coverage=tuple(map(ShardCoverage.from_proto, response.coverage)),
        consistency=Consistency.from_proto(response.consistency),
        embedding_model=EmbeddingModel(response.embedding_model.id, response.embedding_model.revision),
        trace_id=response.trace_id,
        weak=response.weak,
        mode=SearchMode.from_proto(response.mode),
        lexical_statistics_age_ms=response.lexical_statistics_age_ms,
    )
