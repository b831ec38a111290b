"""Calls of a client about documents rather than questions: list, export, delete."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from ostraka.connection import RpcMetadata
from ostraka.errors import DeadlineExceeded, InvalidRequest
from ostraka.filter_expressions import filter_to_proto
from ostraka.filters import FilterLike
from ostraka.listings import DocumentPage, DocumentSummary, ExportedDocument
from ostraka.opened_client import OpenedClient, checked, request_of
from ostraka.results import Consistency, DocumentWrite, WriteLevel, WriteResult
from ostraka.v1 import router_pb2 as pb

if TYPE_CHECKING:
    from ostraka.v1.router_pb2_grpc import RouterServiceAsyncStub

PAGE_SIZE = 100


class DocumentCalls(OpenedClient):
    """List, export, delete."""

    async def list_documents(
        self,
        where: FilterLike | None = None,
        *,
        page_size: int = PAGE_SIZE,
        page_token: str = "",
        collection: str | None = None,
        consistency: Consistency = Consistency.QUORUM,
        max_staleness_ms: int = 0,
        timeout_s: float | None = None,
    ) -> DocumentPage:
        """One page of documents, ascending by id; a document meets `where` when any of its passages does."""
        request = request_of(
            pb.ListDocumentsRequest,
            collection=self._name(collection),
            filter=filter_to_proto(where),
            page_size=page_size,
            page_token=page_token,
            consistency=consistency.value,
            max_staleness_ms=max_staleness_ms,
            session_token=self._session.token,
        )

        def call(stub: RouterServiceAsyncStub, *, timeout: float, metadata: RpcMetadata) -> Any:
            return stub.ListDocuments(request, timeout=timeout, metadata=metadata)

        response: pb.ListDocumentsResponse = await self._open.unary(call, self._deadline(timeout_s), read=True)
        self._session.add(response.session_token)
        return DocumentPage.from_proto(response)

    async def documents(
        self, where: FilterLike | None = None, *, page_size: int = PAGE_SIZE, **arguments: Any
    ) -> AsyncGenerator[DocumentSummary, None]:
        """Every document, page after page; the arguments are those of `list_documents`. What is written meanwhile
        is in it or not; nothing is in it twice."""
        token = ""
        while True:
            page = await self.list_documents(where, page_size=page_size, page_token=token, **arguments)
            for document in page.documents:
                yield document
            token = page.next_page_token
            if not token:
                return

    async def export(
        self,
        where: FilterLike | None = None,
        *,
        include_vectors: bool = False,
        collection: str | None = None,
        consistency: Consistency = Consistency.QUORUM,
        max_staleness_ms: int = 0,
        timeout_s: float | None = None,
    ) -> AsyncGenerator[ExportedDocument, None]:
        """Whole documents, ascending by id, read from the mesh no faster than they are taken here.

        `timeout_s` is the longest wait for the next document, not for all of them. Raises OstrakaError, also in the
        middle: what came before is whole, and documents behind it are missing.
        """
        request = request_of(
            pb.ExportRequest,
            collection=self._name(collection),
            filter=filter_to_proto(where),
            include_vectors=include_vectors,
            consistency=consistency.value,
            max_staleness_ms=max_staleness_ms,
            session_token=self._session.token,
        )

        def call(stub: RouterServiceAsyncStub, _timeout: float, metadata: RpcMetadata) -> Any:
            return stub.Export(request, metadata=metadata)

        wait_s = self._options.timeout_s if timeout_s is None else timeout_s
        async with aclosing(self._open.stream(call, self._deadline(wait_s))) as messages:
            while True:
                try:
                    async with asyncio.timeout(wait_s):
                        message = await anext(messages, None)
                except TimeoutError:
                    raise DeadlineExceeded(f"no further document arrived within {wait_s:g} s") from None
                if message is None:
                    return
                yield ExportedDocument.from_proto(message)

    async def delete(
        self,
        document_ids: Iterable[str],
        *,
        collection: str | None = None,
        level: WriteLevel = WriteLevel.QUORUM,
        idempotency_key: str = "",
        timeout_s: float | None = None,
        check: bool = True,
    ) -> WriteResult:
        """Delete whole documents. An UNCERTAIN deletion is reported, never repeated: it would be a new one, unless an
        `idempotency_key` names it; with the same key and ids it may be repeated, as in `upsert`."""
        request = request_of(
            pb.DeleteRequest,
            collection=self._name(collection),
            document_ids=list(document_ids),
            level=level.value,
            idempotency_key=idempotency_key,
        )
        return (await self._delete(request, timeout_s, check=check))[0]

    async def delete_matching(
        self,
        where: FilterLike | None = None,
        *,
        source: str = "",
        collection: str | None = None,
        level: WriteLevel = WriteLevel.QUORUM,
        timeout_s: float | None = None,
        check: bool = True,
    ) -> AsyncGenerator[WriteResult, None]:
        """Delete every document of a source, or with a passage that meets `where`: one result for each call, which
        has `timeout_s` and deletes some hundreds, until none is left.

        A document that is replaced while this runs may be deleted although it no longer matches. Without `check`, it
        ends when a call deletes nothing.
        """
        if (where is None) == (not source):
            raise InvalidRequest("name either a condition or a source", field="source")
        request = request_of(
            pb.DeleteRequest,
            collection=self._name(collection),
            source=source,
            filter=filter_to_proto(where),
            level=level.value,
        )
        more = True
        while more:
            result, more = await self._delete(request, timeout_s, check=check)
            if result.documents:
                yield result
            more = more and any(document.acknowledged for document in result.documents)

    async def _delete(
        self, request: pb.DeleteRequest, timeout_s: float | None, *, check: bool
    ) -> tuple[WriteResult, bool]:
        def call(stub: RouterServiceAsyncStub, *, timeout: float, metadata: RpcMetadata) -> Any:
            return stub.Delete(request, timeout=timeout, metadata=metadata)

        response: pb.DeleteResponse = await self._open.unary(
            call, self._deadline(timeout_s), read=bool(request.idempotency_key)
        )
        self._session.add(response.session_token)
        result = write_result(tuple(map(DocumentWrite.from_proto, response.documents)), response)
        return checked(result, check), response.more


def write_result(documents: tuple[DocumentWrite, ...], response: pb.UpsertResponse | pb.DeleteResponse) -> WriteResult:
    """The outcomes, and what the first reply said of all of them."""
    level = WriteLevel.from_proto(response.level)
    return WriteResult(documents, response.trace_id, level, response.meaning, response.weak)
