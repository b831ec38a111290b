"""Placement: a document's bucket decides its shard, so all its passages share one."""

from __future__ import annotations

from hashlib import blake2b

BUCKETS = 256
_KEY = b"ostraka-bucket-1"


def bucket_of(document_id: str) -> int:
    """0..255 by keyed BLAKE2b; fixed for ever, since stored data depends on it."""
    digest = blake2b(document_id.encode("utf-8"), digest_size=8, key=_KEY).digest()
    return int.from_bytes(digest, "little") % BUCKETS
