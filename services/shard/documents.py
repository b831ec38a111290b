"""Reading whole documents by id."""

from __future__ import annotations

from collections.abc import Sequence

from ostraka.v1 import shard_pb2
from services.quorum.gtid import GtidSet
from services.shard.readers import Readers
from services.shard.wire import head_to_wire, passage_to_wire


def read_documents(
    readers: Readers, document_ids: Sequence[str], with_vectors: bool, with_batches: bool = False
) -> tuple[GtidSet, list[shard_pb2.StoredDocument], GtidSet]:
    """(applied set, documents that have a head, tombstones included, batches that wrote their versions), all of one
    committed state. The last is empty unless asked for; when a batch is not remembered, it is the whole applied set.

    Raises DamagedRowError, StoreError.
    """
    found: list[shard_pb2.StoredDocument] = []
    batches = GtidSet.EMPTY
    with readers.lend() as reader, reader.database.reading():
        applied, _ = reader.applied()
        for document_id in dict.fromkeys(document_ids):
            head = reader.head(document_id)
            if head is None:
                continue
            rows = reader.live_passages(document_id) if head.passages else []
            if with_batches:
                wrote = reader.ops_of_version(head.version, document_id)
                batches = batches.union(GtidSet.of(*wrote) if wrote else applied)
            found.append(
                shard_pb2.StoredDocument(
                    head=head_to_wire(head),
                    passages=[passage_to_wire(row, with_vector=with_vectors) for row in rows],
                )
            )
    return applied, found, batches
