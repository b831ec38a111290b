"""ListDocuments and Export: every shard's documents, merged in the order of their ids, page by page.

A page is one read of all shards at the level asked for. It ends where a shard that has more stopped: behind that
id the shard may hold documents that it did not send. Pages are separate reads, so a document written while a listing
goes on is in it or not, whole, but never twice, and nothing else is lost.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, replace

from opentelemetry.trace import Span

from ostraka.v1 import passage_pb2, router_pb2, shard_pb2
from services.router import page_token
from services.router.catalogue import Collection
from services.router.coverage import FRESHNESS, refuse_partial, session_token, shard_coverage, told_staleness
from services.router.leg_span import SPAN_LIST
from services.router.list_legs import ListLegs, PageQuestion
from services.router.list_request import ExportPlan, ListPlan
from services.router.node_links import NodeLinks
from services.router.provenance import passage_from_payload
from services.router.read_request import Reading
from services.router.read_types import LegSender, ReadTools
from services.router.steady_read import steady_read
from services.router.vectors import widened
from services.router.wire import SetReader
from services.runtime.deadline import Deadline

EXPORT_PAGE = 64
"""Documents of one page of an Export; a shard's part of a page is bounded by bytes as well."""
PAGE_BYTES_MAX = 4 * 1024 * 1024
"""A page ends with the document that reaches this."""


@dataclass(frozen=True, slots=True)
class Found:
    """One page."""

    documents: Sequence[tuple[int, shard_pb2.ListedDocument]]
    """(shard, document), ascending by id."""
    more: bool
    coverage: Sequence[passage_pb2.ShardCoverage]
    session_token: bytes


class Listing:
    """Lists and exports documents."""

    def __init__(self, links: NodeLinks, reader: SetReader, tools: ReadTools) -> None:
        self._links, self._reader, self._tools = links, reader, tools

    async def documents(self, plan: ListPlan, deadline: Deadline, span: Span) -> router_pb2.ListDocumentsResponse:
        """One page of summaries. Raises Unavailable when a shard cannot be read at the level."""
        question = PageQuestion(plan.reading.collection, plan.filter, plan.after, plan.size)
        found = await self.page(plan.reading, question, deadline, span)
        token = ""
        if found.more:
            last = found.documents[-1][1].head.document_id
            token = page_token.encode(plan.reading.collection.name, plan.filter, last)
        return router_pb2.ListDocumentsResponse(
            documents=[_summary(shard, document) for shard, document in found.documents],
            next_page_token=token,
            coverage=found.coverage,
            session_token=found.session_token,
        )

    async def export(
        self, plan: ExportPlan, page_deadline: Callable[[], Deadline], span: Span
    ) -> AsyncGenerator[router_pb2.ExportedDocument, None]:
        """Whole documents, one page in memory at a time; the next one is read when the last was taken.

        `page_deadline` gives each page its own. Raises Unavailable, DeadlineExceeded.
        """
        collection, after, more = plan.reading.collection, "", True
        while more:
            question = PageQuestion(
                collection,
                plan.filter,
                after,
                EXPORT_PAGE,
                include_passages=True,
                include_vectors=plan.include_vectors,
            )
            found = await self.page(plan.reading, question, page_deadline(), span)
            more = found.more
            for _, document in found.documents:
                after = document.head.document_id
                yield _exported(document, collection.dim, vectors=plan.include_vectors)

    async def page(self, reading: Reading, question: PageQuestion, deadline: Deadline, span: Span) -> Found:
        """The next documents of all shards together. Raises Unavailable."""

        def sender(members: Collection) -> LegSender[shard_pb2.ListShardDocumentsResponse]:
            asked = replace(question, collection=members)
            return ListLegs(self._links, self._reader, asked, self._tools.limits.search_wait_ms).send

        _, outcomes = await steady_read(
            reading.collection,
            reading.collection.shards,
            FRESHNESS[reading.level],
            reading.session,
            self._tools,
            sender,
            SPAN_LIST,
            span,
            deadline,
            reading.max_staleness_ms,
        )
        refuse_partial(outcomes, reading)
        replies = {outcome.shard: outcome.reply.value for outcome in outcomes if outcome.reply is not None}
        documents, more = merged(replies, question.limit)
        coverage = [
            shard_coverage(
                outcome,
                reading.level,
                outcome.reply.value.index_epoch if outcome.reply else "",
                0,
                told_staleness(outcome.reply.value) if outcome.reply else None,
            )
            for outcome in outcomes
        ]
        return Found(documents, more, coverage, session_token(reading, outcomes))


def merged(
    replies: dict[int, shard_pb2.ListShardDocumentsResponse], limit: int
) -> tuple[list[tuple[int, shard_pb2.ListedDocument]], bool]:
    """(the first documents of all shards, whether there are further ones)"""
    # Code points are in the order of UTF-8 bytes.
    entries = [
        (document.head.document_id, shard, document) for shard in replies for document in replies[shard].documents
    ]
    entries.sort(key=lambda entry: entry[0])
    ends = [reply.documents[-1].head.document_id for reply in replies.values() if reply.more and reply.documents]
    certain = [entry for entry in entries if entry[0] <= min(ends)] if ends else entries
    taken: list[tuple[int, shard_pb2.ListedDocument]] = []
    size = 0
    for _, shard, document in certain:
        if len(taken) == limit or size >= PAGE_BYTES_MAX:
            break
        taken.append((shard, document))
        size += document.ByteSize()
    return taken, bool(ends) or len(taken) < len(certain)


def _summary(shard: int, document: shard_pb2.ListedDocument) -> router_pb2.DocumentSummary:
    summary = router_pb2.DocumentSummary(
        document_id=document.head.document_id,
        source=document.source,
        version=document.head.version,
        passages=document.head.passages,
        shard=shard,
    )
    for key, value in document.metadata.items():
        summary.metadata[key].CopyFrom(value)
    return summary


def _exported(document: shard_pb2.ListedDocument, dim: int, *, vectors: bool) -> router_pb2.ExportedDocument:
    head = document.head
    exported = router_pb2.ExportedDocument(document_id=head.document_id, version=head.version)
    for row in document.passages:
        passage = passage_from_payload(row.payload, head.version)
        if vectors:
            passage.vector.CopyFrom(passage_pb2.Vector(dim=dim, data=widened(row.vector_f16)))
        exported.passages.append(passage)
    return exported
