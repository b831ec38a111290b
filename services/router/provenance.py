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
    hit = found.hit
    passage = passage_from_payload(payload, hit.version)
    return passage_pb2.Hit(
        passage=passage,
        provenance=passage_pb2.Provenance(
            passage_id=passage.passage_id,
            document_id=hit.document_id,
            source=passage.source,
            version=hit.version,
            shard=found.shard,
            replica=replica,
            index_epoch=index_epoch,
            index_part=hit.index_part,
            index_kind=hit.index_kind,
            dense_score=found.dense.score if found.dense is not None else 0.0,
            dense_rank=found.dense_rank,
            lexical_score=found.lexical.lexical_score if found.lexical is not None else 0.0,
            lexical_rank=found.lexical_rank,
            score=found.score,
            rank=rank,
            content_sha256=passage.content_sha256,
            embedding_model=passage_pb2.EmbeddingModel(id=model.id, revision=model.revision),
        ),
    )
