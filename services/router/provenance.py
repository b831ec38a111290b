"""Hits as the contract says them: the passage, and where it came from."""

from __future__ import annotations

from ostraka.v1 import passage_pb2, shard_pb2
from services.router.catalogue import Model
from services.router.fusion import Fused


def passage_from_payload(payload: bytes, version: passage_pb2.Version) -> passage_pb2.Passage:
    """A stored passage with the version of its document."""
    passage = passage_pb2.Passage.FromString(payload)
    passage.version.CopyFrom(version)
    return passage


def hit_of(
    found: Fused[shard_pb2.ShardHit], payload: bytes, *, replica: str, index_epoch: str, rank: int, model: Model
) -> passage_pb2.Hit:
    """A hit with complete provenance; `rank` counts from 1. Scores are 0 where their rank is."""
    hit, dense, lexical = found.hit, found.dense, found.lexical
    # Filled in place: messages given to a constructor are copied, and this is done for every hit of every search.
    made = passage_pb2.Hit()
    passage, provenance = made.passage, made.provenance
    passage.ParseFromString(payload)
    passage.version.CopyFrom(hit.version)
    provenance.passage_id = passage.passage_id
    provenance.document_id = hit.document_id
    provenance.source = passage.source
    provenance.version.CopyFrom(hit.version)
    provenance.shard = found.shard
    provenance.replica = replica
    provenance.index_epoch = index_epoch
    provenance.index_part = hit.index_part
    provenance.index_kind = hit.index_kind
    provenance.score = found.score
    provenance.rank = rank
    provenance.content_sha256 = passage.content_sha256
    provenance.embedding_model.id, provenance.embedding_model.revision = model.id, model.revision
    if dense is not None:
        provenance.dense_score, provenance.dense_rank = dense.score, found.dense_rank
    if lexical is not None:
        provenance.lexical_score, provenance.lexical_rank = lexical.lexical_score, found.lexical_rank
    return made
