"""Between the contract's messages and the protocol's values, both directions side by side.

Lost on the way in: nothing. A message that no value can stand for raises `WireError`, which names the field.
"""

from __future__ import annotations

from collections.abc import Iterable

from ostraka.v1 import passage_pb2, shard_pb2
from services.quorum.clock import Version
from services.quorum.gtid import Gtid, GtidSet
from services.quorum.rows import DocumentState, HeadRow, Op, OpKey, PassageRow, PullBundle
from services.quorum.status import ReplicaStatus


class WireError(ValueError):
    """A message says something impossible."""

    def __init__(self, field: str, message: str) -> None:
        self.field = field
        super().__init__(f"{field}: {message}")


def status_to_wire(status: ReplicaStatus) -> shard_pb2.ReplicaStatus.ValueType:
    """The contract's number of a status; a test proves that the names agree."""
    return shard_pb2.ReplicaStatus.ValueType(status.value)


def version_to_wire(version: Version) -> passage_pb2.Version:
    return passage_pb2.Version(hlc=version.hlc, source=version.source)


def version_from_wire(message: passage_pb2.Version) -> Version:
    return Version(message.hlc, message.source)


def gtid_to_wire(gtid: Gtid) -> passage_pb2.Gtid:
    return passage_pb2.Gtid(source=gtid.source, seq=gtid.seq)


def gtid_from_wire(message: passage_pb2.Gtid) -> Gtid:
    return Gtid(message.source, message.seq)


def set_to_wire(gtids: GtidSet) -> passage_pb2.GtidSet:
    return passage_pb2.GtidSet(
        sources=[
            passage_pb2.SourceIntervals(source=source, bounds=[bound for span in spans for bound in span])
            for source, spans in sorted(gtids.intervals().items())
        ]
    )


def set_from_wire(message: passage_pb2.GtidSet, field: str) -> GtidSet:
    """Raises WireError when bounds are odd in number or descending, or a source is repeated."""
    intervals: dict[int, list[tuple[int, int]]] = {}
    for entry in message.sources:
        bounds = list(entry.bounds)
        if not bounds or len(bounds) % 2 or entry.source in intervals:
            raise WireError(field, f"source {entry.source} needs first and last of each interval, once")
        intervals[entry.source] = list(zip(bounds[::2], bounds[1::2], strict=True))
    try:
        return GtidSet.from_intervals(intervals)
    except ValueError as error:
        raise WireError(field, str(error)) from error


def passage_to_wire(row: PassageRow, *, with_vector: bool = True) -> shard_pb2.PassageRow:
    return shard_pb2.PassageRow(
        document_id=row.document_id,
        ordinal=row.ordinal,
        vector_f16=row.vector if with_vector else b"",
        payload=row.payload,
        version=version_to_wire(row.version),
    )


def passage_from_wire(message: shard_pb2.PassageRow, version: Version | None = None) -> PassageRow:
    """`version` None: the message's own, as in pulls."""
    own = version_from_wire(message.version) if version is None else version
    return PassageRow(message.document_id, message.ordinal, own, message.vector_f16, message.payload)


def head_to_wire(head: HeadRow) -> shard_pb2.HeadRow:
    return shard_pb2.HeadRow(
        document_id=head.document_id, passages=head.passages, version=version_to_wire(head.version)
    )


def head_from_wire(message: shard_pb2.HeadRow, version: Version | None = None) -> HeadRow:
    """`version` None: the message's own, as in pulls."""
    own = version_from_wire(message.version) if version is None else version
    return HeadRow(message.document_id, message.passages, own)


def key_to_wire(key: OpKey) -> shard_pb2.IdempotencyKey:
    return shard_pb2.IdempotencyKey(document_id=key.document_id, key=key.key, content=key.content)


def key_from_wire(message: shard_pb2.IdempotencyKey) -> OpKey:
    return OpKey(message.document_id, message.key, message.content)


def bundle_to_wire(bundle: PullBundle, view: GtidSet) -> shard_pb2.PullResponse:
    return shard_pb2.PullResponse(
        covers=set_to_wire(bundle.covers),
        documents=[
            shard_pb2.StoredDocument(
                head=head_to_wire(state.head), passages=[passage_to_wire(row) for row in state.passages]
            )
            for state in bundle.documents
        ],
        staged=[passage_to_wire(row) for row in bundle.staged],
        ops=[
            shard_pb2.OpRow(
                gtid=gtid_to_wire(op.gtid),
                version=version_to_wire(op.version),
                document_ids=op.document_ids,
                content=op.content,
                keys=[key_to_wire(key) for key in op.keys],
            )
            for op in bundle.ops
        ],
        hlc_max=bundle.hlc_max,
        view=set_to_wire(view),
    )


def bundle_from_wire(message: shard_pb2.PullResponse, dim: int) -> PullBundle:
    """Raises WireError when a set is malformed or a vector has another length."""
    documents = tuple(
        DocumentState(head_from_wire(entry.head), tuple(_pulled(entry.passages, dim, "documents.passages")))
        for entry in message.documents
    )
    ops = tuple(
        Op(
            gtid_from_wire(entry.gtid),
            version_from_wire(entry.version),
            tuple(entry.document_ids),
            entry.content,
            tuple(map(key_from_wire, entry.keys)),
        )
        for entry in message.ops
    )
    return PullBundle(
        covers=set_from_wire(message.covers, "covers"),
        documents=documents,
        staged=tuple(_pulled(message.staged, dim, "staged")),
        ops=ops,
        hlc_max=message.hlc_max,
    )


def _pulled(rows: Iterable[shard_pb2.PassageRow], dim: int, field: str) -> Iterable[PassageRow]:
    for row in rows:
        if len(row.vector_f16) != 2 * dim:
            raise WireError(field, f"{row.document_id}#{row.ordinal} has {len(row.vector_f16)} vector bytes")
        yield passage_from_wire(row)
