"""The RouterService of the contract: checks the request, hands it on, fills the reply."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any, TypeAlias

import grpc
from opentelemetry.trace import Span

from observability import names, spans
from observability.provenance import documents_json
from ostraka.v1 import passage_pb2, router_pb2, router_pb2_grpc
from services.quorum.gtid import GtidSet
from services.quorum.rows import OpKey
from services.quorum.session import encode_session, merge_sessions
from services.quorum.write import Outcome
from services.router import budget
from services.router.ask import Asking
from services.router.catalogue import Catalogue, Collection
from services.router.embedder import Embedder
from services.router.idempotency import Earlier, KeyedWrites
from services.router.ingest import Ingest
from services.router.levels import WriteLevel, meaning
from services.router.list_legs import PageQuestion
from services.router.list_request import PAGE_SIZE_MAX, DeletePlan, delete_plan, export_plan, list_plan
from services.router.listing import Listing
from services.router.lookup import Lookup
from services.router.packing import Document
from services.router.read_request import Reading, ask_plan, get_plan, search_plan
from services.router.retrieval import Retrieval, Retrieved, Wanted, retrieval_span
from services.router.status import Status
from services.router.wire import version_to_proto
from services.router.write_request import upsert_plan
from services.router.writing import Write, Writing, Written
from services.runtime.admission import Admission
from services.runtime.config import Config
from services.runtime.deadline import Deadline, current_deadline

_Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]
ANSWER_ID_BYTES = 16
# Writing a batch's thousands of hits into a span would stall every other call; these fill its budget anyway.
HITS_TRACED_MAX = 100
_OUTCOMES = {
    Outcome.ACKNOWLEDGED: router_pb2.WRITE_OUTCOME_ACKNOWLEDGED,
    Outcome.UNCERTAIN: router_pb2.WRITE_OUTCOME_UNCERTAIN,
    Outcome.REFUSED: router_pb2.WRITE_OUTCOME_REFUSED,
}


class RouterServicer(router_pb2_grpc.RouterServiceServicer):
    """The front door."""

    def __init__(
        self,
        config: Config,
        catalogue: Catalogue,
        embedder: Embedder,
        retrieval: Retrieval,
        lookup: Lookup,
        ingest: Ingest,
        writing: Writing,
        asking: Asking,
        status: Status,
        listing: Listing,
        keyed: KeyedWrites,
    ) -> None:
        self._config, self._catalogue = config, catalogue
        self._embedder, self._retrieval, self._lookup = embedder, retrieval, lookup
        self._ingest, self._writing, self._asking, self._status = ingest, writing, asking, status
        self._listing = listing
        self._keyed = keyed
        self._admission = Admission(config.router.calls_inflight_max)

    async def Ask(self, request: router_pb2.AskRequest, _context: _Context) -> AsyncIterator[router_pb2.AskEvent]:
        """A streamed, cited answer."""
        with self._admission.admit():
            plan = ask_plan(request, self._catalogue, self._config.router)
            deadline = budget.work(current_deadline())
            async with aclosing(self._asking.ask(plan, secrets.token_hex(ANSWER_ID_BYTES), deadline)) as events:
                async for event in events:
                    yield event

    async def Search(self, request: router_pb2.SearchRequest, _context: _Context) -> router_pb2.SearchResponse:
        """The best passages for each query."""
        with self._admission.admit():
            plan = search_plan(request, self._catalogue, self._config.router)
            reading, collection = plan.reading, plan.reading.collection
            deadline = budget.work(current_deadline())
            vectors = list(plan.vectors)
            missing = [index for index, vector in enumerate(vectors) if vector is None]
            if missing and plan.ranking.needs_vector:
                texts = [plan.texts[index] for index in missing]
                made = await self._embedder.queries(collection, texts, deadline.share(budget.EMBED_SHARE))
                for index, vector in zip(missing, made, strict=True):
                    vectors[index] = vector
            model = self._embedder.model_of(collection)
            span = retrieval_span(reading, plan.ranking)
            try:
                found = await self._retrieval.search(
                    reading,
                    Wanted(vectors, plan.words, plan.ranking, plan.exact, plan.filter),
                    model=model,
                    deadline=deadline,
                    span=span,
                )
                if span.is_recording():
                    _describe(span, found)
            except BaseException as error:
                spans.record_error(span, error)
                raise
            finally:
                spans.end_span(span)
            return router_pb2.SearchResponse(
                results=found.results,
                coverage=found.coverage,
                session_token=found.session_token,
                consistency=reading.level,
                embedding_model=passage_pb2.EmbeddingModel(id=model.id, revision=model.revision),
                trace_id=spans.current_trace_id(),
                weak=collection.weak,
                mode=plan.ranking.mode,
                lexical_statistics_age_ms=found.statistics_age_ms,
            )

    async def Upsert(self, request: router_pb2.UpsertRequest, _context: _Context) -> router_pb2.UpsertResponse:
        """Write documents; each replaces its predecessor as a whole."""
        with self._admission.admit():
            plan = upsert_plan(request, self._catalogue, self._config.router, self._config.shard.batch_bytes_max)
            deadline = budget.work(current_deadline())
            keys = [document.key for document in plan.documents if document.key is not None]
            earlier = await self._earlier(plan.collection, keys, plan.level, deadline)
            fresh = [document for document in plan.documents if document.document_id not in earlier]
            prepared = await self._ingest.prepare(replace(plan, documents=fresh), deadline) if fresh else []
            writes = [document.write for document in prepared]
            written, seen = await self._written(plan.collection, writes, plan.level, deadline)
            outcomes = {
                document.write.document.document_id: _document_write(document.write.document, found, document.truncated)
                for document, found in zip(prepared, written, strict=True)
            }
            outcomes |= {
                document.document_id: _repeated(document.document_id, len(document.passages), earlier)
                for document in plan.documents
                if document.document_id in earlier
            }
            return router_pb2.UpsertResponse(
                documents=[outcomes[document.document_id] for document in plan.documents],
                session_token=encode_session(merge_sessions(seen, _seen(plan.collection, earlier))),
                trace_id=spans.current_trace_id(),
                level=plan.level,
                meaning=meaning(plan.level, plan.collection.members, weak=plan.collection.weak),
                weak=plan.collection.weak,
            )

    async def Delete(self, request: router_pb2.DeleteRequest, _context: _Context) -> router_pb2.DeleteResponse:
        """Delete whole documents; one that never existed is deleted too.

        By source or filter, what a quorum read finds is deleted, also if it was replaced in between.
        """
        with self._admission.admit():
            plan = delete_plan(request, self._catalogue, self._config.router)
            deadline = budget.work(current_deadline())
            ids, more = plan.document_ids, False
            if plan.filter is not None:
                ids, more = await self._matching(plan, deadline.share(budget.DELETE_LISTING_SHARE))
            earlier = await self._earlier(plan.collection, plan.keys, plan.level, deadline)
            keys = {key.document_id: key for key in plan.keys}
            writes = [
                Write(Document(document_id, ()), key=keys.get(document_id))
                for document_id in ids
                if document_id not in earlier
            ]
            written, seen = await self._written(plan.collection, writes, plan.level, deadline)
            outcomes = {document_id: _repeated(document_id, 0, earlier) for document_id in earlier}
            outcomes |= {
                write.document.document_id: _document_write(write.document, found, ())
                for write, found in zip(writes, written, strict=True)
            }
            return router_pb2.DeleteResponse(
                documents=[outcomes[document_id] for document_id in ids],
                session_token=encode_session(merge_sessions(seen, _seen(plan.collection, earlier))),
                trace_id=spans.current_trace_id(),
                more=more,
                level=plan.level,
                meaning=meaning(plan.level, plan.collection.members, weak=plan.collection.weak),
                weak=plan.collection.weak,
            )

    async def _earlier(
        self, collection: Collection, keys: Sequence[OpKey], level: WriteLevel.ValueType, deadline: Deadline
    ) -> Mapping[str, Earlier]:
        """Earlier attempts of the writes that have a key, by document id."""
        return await self._keyed.earlier(collection, keys, level, deadline.share(budget.KEYS_SHARE)) if keys else {}

    async def _written(
        self, collection: Collection, writes: Sequence[Write], level: WriteLevel.ValueType, deadline: Deadline
    ) -> tuple[list[Written], Mapping[tuple[str, int], GtidSet]]:
        return await self._writing.write(collection, writes, deadline, level) if writes else ([], {})

    async def ListDocuments(
        self, request: router_pb2.ListDocumentsRequest, _context: _Context
    ) -> router_pb2.ListDocumentsResponse:
        """One page of documents, ascending by id."""
        with self._admission.admit():
            plan = list_plan(request, self._catalogue)
            return await self._listing.documents(plan, budget.work(current_deadline()), spans.current_span())

    async def Export(
        self, request: router_pb2.ExportRequest, _context: _Context
    ) -> AsyncIterator[router_pb2.ExportedDocument]:
        """Whole documents, ascending by id, as fast as the caller takes them; each page has the default deadline."""
        with self._admission.admit():
            plan = export_plan(request, self._catalogue)

            def page_deadline() -> Deadline:
                return Deadline.after_ms(self._config.mesh.deadline_ms_default)

            documents = self._listing.export(plan, page_deadline, spans.current_span())
            async with aclosing(documents):
                async for document in documents:
                    yield document

    async def _matching(self, plan: DeletePlan, deadline: Deadline) -> tuple[Sequence[str], bool]:
        """(the first documents that the plan's filter names, whether there are more)"""
        reading = Reading(plan.collection, passage_pb2.CONSISTENCY_LEVEL_QUORUM, {})
        question = PageQuestion(plan.collection, plan.filter, "", min(self._config.router.documents_max, PAGE_SIZE_MAX))
        found = await self._listing.page(reading, question, deadline, spans.current_span())
        return [document.head.document_id for _, document in found.documents], found.more

    async def Get(self, request: router_pb2.GetRequest, _context: _Context) -> router_pb2.GetResponse:
        """Documents and passages by id."""
        with self._admission.admit():
            plan = get_plan(request, self._catalogue, self._config.router)
            return await self._lookup.get(plan, budget.work(current_deadline()), spans.current_span())

    async def Status(self, _request: router_pb2.StatusRequest, _context: _Context) -> router_pb2.StatusResponse:
        """What the mesh looks like from here."""
        with self._admission.admit():
            return await self._status.status(budget.work(current_deadline()))


def _describe(span: Span, found: Retrieved) -> None:
    """The best hits of every query, and how many there were."""
    hits = sum(len(result.hits) for result in found.results)
    each = max(1, HITS_TRACED_MAX // len(found.results))
    best = [hit.provenance for result in found.results for hit in result.hits[:each]]
    span.set_attributes({names.HITS: hits, names.GEN_AI_DOCUMENTS: documents_json(best[:HITS_TRACED_MAX])})


def _repeated(document_id: str, passages: int, earlier: Mapping[str, Earlier]) -> router_pb2.DocumentWrite:
    found = earlier[document_id].written
    return router_pb2.DocumentWrite(
        document_id=document_id,
        outcome=_OUTCOMES[found.outcome],
        version=version_to_proto(found.version),
        acks=found.acks,
        passages=passages,
        shard=found.shard,
        reason=found.reason,
        repeated_key=True,
    )


def _seen(collection: Collection, earlier: Mapping[str, Earlier]) -> Mapping[tuple[str, int], GtidSet]:
    """What of the earlier attempts is acknowledged now, for the session token."""
    seen: dict[tuple[str, int], GtidSet] = {}
    for found in earlier.values():
        if found.written.outcome is Outcome.ACKNOWLEDGED:
            key = (collection.name, found.written.shard)
            seen[key] = seen.get(key, GtidSet.EMPTY).add(found.gtid)
    return seen


def _document_write(document: Document, found: Written, truncated: Sequence[int]) -> router_pb2.DocumentWrite:
    return router_pb2.DocumentWrite(
        document_id=document.document_id,
        outcome=_OUTCOMES[found.outcome],
        version=version_to_proto(found.version),
        acks=found.acks,
        passages=len(document.rows),
        truncated_ordinals=truncated,
        shard=found.shard,
        reason=found.reason,
    )
