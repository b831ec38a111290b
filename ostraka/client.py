"""The asynchronous client of a mesh.

    async with Client(["127.0.0.1:7402"], certs=".mesh/certs", collection="docs") as client:
        async for event in client.ask("What does yield from do?"):
            ...

Every call has a deadline in seconds that covers its repetitions too. Reads are repeated after transient
failures, writes only after a definite one; a write that ended UNCERTAIN is repeated with its version, which
makes it the same write. The session token of every reply is kept, so `Consistency.SESSION` reads see what this
client wrote and never go back.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from ostraka.answers import Answer, AskEvent, event_from_proto
from ostraka.connection import Connection, Deadline, RpcMetadata
from ostraka.credentials import IDENTITY_DEFAULT, Credentials
from ostraka.documents import NewDocument, VectorLike, vector_to_proto
from ostraka.errors import (
    ClientStateError,
    InvalidRequest,
    OstrakaError,
    ServerError,
    WriteRefused,
    WriteUncertain,
)
from ostraka.mesh_status import MeshStatus
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
    WriteResult,
)
from ostraka.retry import RetryPolicy
from ostraka.search_modes import Fusion, SearchMode
from ostraka.session import Session
from ostraka.v1 import router_pb2 as pb

if TYPE_CHECKING:
    from ostraka.v1.router_pb2_grpc import RouterServiceAsyncStub


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientOptions:
    """Limits and defaults of one client."""

    timeout_s: float = 10.0
    """Deadline of a call that names none."""
    ask_timeout_s: float = 60.0
    """The same for `ask`, which waits for a language model."""
    message_bytes_max: int = 16 * 1024 * 1024
    retry: RetryPolicy = field(default_factory=RetryPolicy)


class Client:
    """One caller of a mesh; open it with `async with` or `connect`, and share it between tasks of one loop."""

    def __init__(
        self,
        addresses: Sequence[str] | str,
        *,
        certs: Path | str | None = None,
        identity: str = IDENTITY_DEFAULT,
        credentials: Credentials | None = None,
        collection: str = "docs",
        session_token: bytes = b"",
        options: ClientOptions | None = None,
    ) -> None:
        """`addresses` are routers as HOST:PORT, used in turn; name either a `certs` directory or `credentials`.

        Raises CertificateError for unreadable files, InvalidRequest when an argument is missing.
        """
        self._addresses = (addresses,) if isinstance(addresses, str) else tuple(addresses)
        if not self._addresses:
            raise InvalidRequest("addresses: at least one router is needed", field="addresses")
        if (certs is None) == (credentials is None):
            raise InvalidRequest("name either a certs directory or credentials", field="certs")
        self._credentials = credentials or Credentials.from_directory(Path(certs or ""), identity)
        self._options = options or ClientOptions()
        self._session = Session(session_token)
        self._connection: Connection | None = None
        self._closed = False
        self.collection = collection

    @classmethod
    async def connect(cls, addresses: Sequence[str] | str, **arguments: Any) -> Self:
        """An opened client; the arguments are the constructor's. The caller must `close` it."""
        return await cls(addresses, **arguments).__aenter__()

    async def __aenter__(self) -> Self:
        if self._connection is not None or self._closed:
            raise ClientStateError("a client is opened once; make another")
        self._connection = Connection(
            self._addresses, self._credentials, self._options.retry, self._options.message_bytes_max
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Cancel what is under way and close the channels; a second time does nothing."""
        connection, self._connection, self._closed = self._connection, None, True
        if connection is not None:
            await connection.close()

    @property
    def session_token(self) -> bytes:
        """What this client has written and seen; hand it to another client to continue its session."""
        return self._session.token

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
        allow_partial: bool = False,
        exact: bool = False,
        embedding_model: str = "",
        mode: SearchMode | str = SearchMode.DENSE,
        fusion: Fusion | None = None,
        lexical_texts: Sequence[str] | None = None,
        timeout_s: float | None = None,
    ) -> list[SearchResult]:
        """One result per query, in order; texts and vectors may be mixed. Raises OstrakaError.

        `lexical_texts`, one per query: what BM25 searches for, where that is not the query's own text; a query by
        vector needs one in the modes hybrid and two-stage.
        """
        words = [""] * len(queries) if lexical_texts is None else list(lexical_texts)
        if len(words) != len(queries):
            raise InvalidRequest(f"lexical_texts: {len(words)} texts for {len(queries)} queries", field="lexical_texts")
        request = _request(
            pb.SearchRequest,
            collection=self._name(collection),
            queries=[
                _query(query, text, f"queries[{n}]") for n, (query, text) in enumerate(zip(queries, words, strict=True))
            ],
            k=k,
            consistency=consistency.value,
            session_token=self._session.token,
            allow_partial=allow_partial,
            exact=exact,
            embedding_model=embedding_model,
            mode=SearchMode.of(mode).value,
            fusion=None if fusion is None else fusion.to_proto(),
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
        allow_partial: bool = False,
        max_tokens: int = 256,
        mode: SearchMode | str = SearchMode.DENSE,
        fusion: Fusion | None = None,
        timeout_s: float | None = None,
    ) -> AsyncGenerator[AskEvent, None]:
        """Stream an answer: `Retrieved`, then `Delta`s, then `Answer`. Leaving the loop cancels the call."""
        request = _request(
            pb.AskRequest,
            collection=self._name(collection),
            question=question,
            k=k,
            consistency=consistency.value,
            session_token=self._session.token,
            allow_partial=allow_partial,
            max_tokens=max_tokens,
            mode=SearchMode.of(mode).value,
            fusion=None if fusion is None else fusion.to_proto(),
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
        timeout_s: float | None = None,
        check: bool = True,
    ) -> WriteResult:
        """Store documents, each replacing its predecessor atomically.

        UNCERTAIN documents are repeated with their version and REFUSED ones as they are, a bounded number of
        times. With `check`, raises WriteUncertain or WriteRefused unless all were acknowledged; without, the
        result says what became of each. Raises Unavailable, DeadlineExceeded ... when no outcome is known.
        """
        deadline = self._deadline(timeout_s)
        batch = list(documents)
        outcomes: dict[int, DocumentWrite] = {}
        waiting = list(range(len(batch)))
        trace_id = ""
        for attempt in range(1, self._options.retry.attempts_max + 1):
            try:
                response = await self._upsert_once([batch[n] for n in waiting], collection, embedding_model, deadline)
            except OstrakaError:
                # After a first round the outcomes known so far are worth more than the last round's failure.
                if attempt == 1:
                    raise
                break
            trace_id = trace_id or response.trace_id
            outcomes.update(zip(waiting, map(DocumentWrite.from_proto, response.documents), strict=True))
            waiting = [n for n in waiting if outcomes[n].outcome is not Outcome.ACKNOWLEDGED]
            if not waiting or deadline.remaining_s() <= 0:
                break
            for n in waiting:
                if outcomes[n].outcome is Outcome.UNCERTAIN:
                    batch[n] = replace(batch[n], retry_version=outcomes[n].version)
        return _checked(WriteResult(tuple(outcomes[n] for n in range(len(batch))), trace_id), check)

    async def _upsert_once(
        self, documents: Sequence[NewDocument], collection: str | None, embedding_model: str, deadline: Deadline
    ) -> pb.UpsertResponse:
        request = _request(
            pb.UpsertRequest,
            collection=self._name(collection),
            documents=[document.to_proto() for document in documents],
            embedding_model=embedding_model,
        )

        def call(stub: RouterServiceAsyncStub, *, timeout: float, metadata: RpcMetadata) -> Any:
            return stub.Upsert(request, timeout=timeout, metadata=metadata)

        response: pb.UpsertResponse = await self._open.unary(call, deadline, read=False)
        self._session.add(response.session_token)
        if len(response.documents) != len(documents):
            raise ServerError(f"{len(documents)} documents were answered by {len(response.documents)} outcomes")
        return response

    async def delete(
        self,
        document_ids: Iterable[str],
        *,
        collection: str | None = None,
        timeout_s: float | None = None,
        check: bool = True,
    ) -> WriteResult:
        """Delete whole documents. An UNCERTAIN deletion is reported, never repeated: it would be a new one."""
        ids = list(document_ids)
        request = _request(pb.DeleteRequest, collection=self._name(collection), document_ids=ids)

        def call(stub: RouterServiceAsyncStub, *, timeout: float, metadata: RpcMetadata) -> Any:
            return stub.Delete(request, timeout=timeout, metadata=metadata)

        response: pb.DeleteResponse = await self._open.unary(call, self._deadline(timeout_s), read=False)
        self._session.add(response.session_token)
        result = WriteResult(tuple(map(DocumentWrite.from_proto, response.documents)), response.trace_id)
        return _checked(result, check)

    async def get(
        self,
        document_ids: Iterable[str] = (),
        *,
        passage_ids: Iterable[str] = (),
        collection: str | None = None,
        consistency: Consistency = Consistency.QUORUM,
        include_vectors: bool = False,
        timeout_s: float | None = None,
    ) -> GetResult:
        """Passages of whole documents, or single ones as `document#ordinal`; what does not exist is `missing`."""
        request = _request(
            pb.GetRequest,
            collection=self._name(collection),
            document_ids=list(document_ids),
            passage_ids=list(passage_ids),
            consistency=consistency.value,
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
        )

    async def status(self, *, timeout_s: float | None = None) -> MeshStatus:
        """What every node, service and collection says of itself."""
        request = pb.StatusRequest()

        def call(stub: RouterServiceAsyncStub, *, timeout: float, metadata: RpcMetadata) -> Any:
            return stub.Status(request, timeout=timeout, metadata=metadata)

        response: pb.StatusResponse = await self._open.unary(call, self._deadline(timeout_s), read=True)
        return MeshStatus.from_proto(response)

    @property
    def _open(self) -> Connection:
        if self._connection is None:
            raise ClientStateError(
                "this client is closed" if self._closed else "open the client first: async with Client(...) as client"
            )
        return self._connection

    def _deadline(self, timeout_s: float | None) -> Deadline:
        return Deadline(self._options.timeout_s if timeout_s is None else timeout_s)

    def _name(self, collection: str | None) -> str:
        return self.collection if collection is None else collection


def _request(kind: Any, **fields: Any) -> Any:
    """A message of the contract. Raises InvalidRequest for what its types cannot hold, such as k = -1."""
    try:
        return kind(**fields)
    except (TypeError, ValueError) as error:
        culprit = next((name for name, value in fields.items() if not _fits(kind, name, value)), "")
        raise InvalidRequest(f"{culprit or kind.__name__}: {error}", field=culprit) from error


def _fits(kind: Any, name: str, value: Any) -> bool:
    try:
        kind(**{name: value})
    except (TypeError, ValueError):
        return False
    return True


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


def _checked(result: WriteResult, check: bool) -> WriteResult:
    if not check or result.acknowledged:
        return result
    for outcome, kind in ((Outcome.UNCERTAIN, WriteUncertain), (Outcome.REFUSED, WriteRefused)):
        if documents := result.having(outcome):
            first = documents[0]
            raise kind(
                f"{len(documents)} of {len(result.documents)} documents {outcome.name}; "
                f"first {first.document_id!r} at version {first.version}: {first.reason}",
                result,
            )
    raise AssertionError("a result that is not acknowledged has an outcome that says why")
