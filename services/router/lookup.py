"""Get: whole documents and single passages by id, at the level asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from opentelemetry.trace import Span

from ostraka.v1 import passage_pb2, router_pb2, shard_pb2
from services.router.catalogue import Collection
from services.router.coverage import FRESHNESS, refuse_partial, session_token, shard_coverage, told_staleness
from services.router.get_legs import GetLegs
from services.router.identifiers import passage_id
from services.router.leg_span import SPAN_GET
from services.router.levels import LINEARIZABLE
from services.router.membership import ATTEMPTS_MAX
from services.router.node_links import NodeLinks
from services.router.provenance import passage_from_payload
from services.router.read_request import GetPlan
from services.router.read_types import LegSender, ReadTools, ShardOutcome
from services.router.steady_read import steady_read
from services.router.vectors import widened
from services.router.wire import SetReader
from services.router.write_back import WriteBack
from services.runtime.deadline import Deadline
from services.runtime.errors import Unavailable


class Lookup:
    """Reads documents by id."""

    def __init__(self, links: NodeLinks, reader: SetReader, tools: ReadTools) -> None:
        self._links, self._reader, self._tools = links, reader, tools
        self._written_back = WriteBack(links, tools.limits.search_wait_ms)

    async def get(self, plan: GetPlan, deadline: Deadline, span: Span) -> router_pb2.GetResponse:
        """Passages by document and ordinal. Raises Unavailable when a shard cannot be read at the level."""
        reading = plan.reading
        wanted = dict.fromkeys([*plan.document_ids, *(document_id for document_id, _ in plan.passages)])
        by_shard: dict[int, list[str]] = {}
        for document_id in wanted:
            by_shard.setdefault(reading.collection.shard_of(document_id), []).append(document_id)
        collection = reading.collection
        for _ in range(ATTEMPTS_MAX):
            collection, outcomes = await self._read(plan, collection, by_shard, deadline, span)
            refuse_partial(outcomes, reading)
            if reading.level != LINEARIZABLE:
                break
            try:
                await self._written_back.everywhere(collection, outcomes, self._reader, deadline)
                break
            except Unavailable:
                newer = await self._tools.membership.after(collection, deadline)
                if newer is None:
                    raise
                collection = newer
        else:
            raise Unavailable("the members changed again and again while this was read", definite=True)
        found = {
            document.head.document_id: document
            for outcome in outcomes
            if outcome.reply is not None
            for document in outcome.reply.value.documents
        }
        response = _response(plan, found, collection.dim)
        response.session_token = session_token(reading, outcomes)
        response.coverage.extend(
            shard_coverage(
                outcome,
                reading.level,
                outcome.reply.value.index_epoch if outcome.reply else "",
                0,
                told_staleness(outcome.reply.value) if outcome.reply else None,
            )
            for outcome in outcomes
        )
        response.consistency, response.weak = reading.level, collection.weak
        return response

    async def _read(
        self, plan: GetPlan, collection: Collection, by_shard: dict[int, list[str]], deadline: Deadline, span: Span
    ) -> tuple[Collection, list[ShardOutcome[shard_pb2.GetDocumentsResponse]]]:
        reading = plan.reading

        def sender(members: Collection) -> LegSender[shard_pb2.GetDocumentsResponse]:
            return GetLegs(
                self._links,
                self._reader,
                members,
                by_shard,
                include_vectors=plan.include_vectors,
                wait_ms=self._tools.limits.search_wait_ms,
                include_batches=reading.level == LINEARIZABLE,
            ).send

        return await steady_read(
            collection,
            by_shard,
            FRESHNESS[reading.level],
            reading.session,
            self._tools,
            sender,
            SPAN_GET,
            span,
            deadline,
            reading.max_staleness_ms,
        )


def _response(plan: GetPlan, found: dict[str, shard_pb2.StoredDocument], dim: int) -> router_pb2.GetResponse:
    """Each wanted passage once, whole documents and single passages alike."""
    whole = set(plan.document_ids)
    single: dict[str, set[int]] = {}
    for document_id, ordinal in plan.passages:
        single.setdefault(document_id, set()).add(ordinal)
    response = router_pb2.GetResponse()
    present: set[tuple[str, int]] = set()
    for document_id in sorted({*whole, *single}):
        document = found.get(document_id)
        for row in _live(document):
            present.add((document_id, row.ordinal))
            if document is not None and (document_id in whole or row.ordinal in single[document_id]):
                response.passages.append(_passage(row, document.head.version, dim, vectors=plan.include_vectors))
    response.missing.extend(
        document_id for document_id in dict.fromkeys(plan.document_ids) if not _live(found.get(document_id))
    )
    response.missing.extend(
        passage_id(document_id, ordinal)
        for document_id, ordinal in dict.fromkeys(plan.passages)
        if (document_id, ordinal) not in present
    )
    return response


def _live(document: shard_pb2.StoredDocument | None) -> Sequence[shard_pb2.PassageRow]:
    """A document's passages by ordinal; none for a tombstone or a document that never was."""
    return sorted(_rows(document), key=lambda row: row.ordinal) if document is not None else ()


def _rows(document: shard_pb2.StoredDocument) -> Iterator[shard_pb2.PassageRow]:
    return (row for row in document.passages if row.ordinal < document.head.passages)


def _passage(
    row: shard_pb2.PassageRow, version: passage_pb2.Version, dim: int, *, vectors: bool
) -> passage_pb2.Passage:
    passage = passage_from_payload(row.payload, version)
    if vectors:
        passage.vector.CopyFrom(passage_pb2.Vector(dim=dim, data=widened(row.vector_f16)))
    return passage
