"""Reading whole documents by id."""

from __future__ import annotations

from collections.abc import Sequence

from ostraka.v1 import shard_pb2
from services.quorum.gtid import GtidSet
from services.shard.readers import Readers
from services.shard.wire import head_to_wire, passage_to_wire


def read_documents(
    readers: Readers, document_ids: Sequence[str], with_vectors: bool
) -> tuple[GtidSet, list[shard_pb2.StoredDocument]]:
    """(applied set, documents that have a head, tombstones included), both of one committed state.

    Raises DamagedRowError, StoreError.
    """
    found: list[shard_pb2.StoredDocument] = []
    with readers.lend() as reader, reader.database.reading():
        applied, _ = reader.applied()
        for document_id in dict.fromkeys(document_ids):
            head = reader.head(document_id)
            if head is None:
                continue
            rows = reader.live_passages(document_id) if head.passages else []
            found.append(
                shard_pb2.StoredDocument(
                    head=head_to_wire(head),
                    passages=[passage_to_wire(row, with_vector=with_vectors) for row in rows],
                )
            )
    return applied, found
