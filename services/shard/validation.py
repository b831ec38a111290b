"""What a write batch must look like before it may reach the writer. Pure; the message names the field."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from ostraka.v1 import passage_pb2, shard_pb2
from services.quorum.rows import HeadRow, OpKey, PassageRow, WriteBatch
from services.runtime.config import ShardConfig
from services.shard.wire import (
    WireError,
    gtid_from_wire,
    head_from_wire,
    key_from_wire,
    passage_from_wire,
    set_from_wire,
    version_from_wire,
)

DOCUMENT_ID_BYTES_MAX = 512
KEY_BYTES_MAX = 128
KEY_CONTENT_BYTES = 16
NORM_TOLERANCE = 0.01
"""A unit vector rounded to float16 is off by less than this, at any dimension we accept."""
PASSAGES_MAX = 1 << 20
"""Of one document."""


def batch_of(request: shard_pb2.WriteRequest, dim: int, config: ShardConfig) -> WriteBatch:
    """The checked batch of a request. Raises WireError."""
    gtid, version = gtid_from_wire(request.gtid), version_from_wire(request.version)
    if gtid.seq < 1:
        raise WireError("gtid.seq", "must be at least 1")
    if not version.hlc:
        raise WireError("version.hlc", "must not be 0")
    rows = len(request.passages) + len(request.heads)
    if not 1 <= rows <= config.batch_rows_max:
        raise WireError("passages", f"a batch holds 1 to {config.batch_rows_max} rows, not {rows}")
    size = sum(len(row.vector_f16) + len(row.payload) for row in request.passages)
    if size > config.batch_bytes_max:
        raise WireError("passages", f"a batch holds at most {config.batch_bytes_max} bytes, not {size}")
    passages = tuple(passage_from_wire(row, version) for row in request.passages)
    heads = tuple(head_from_wire(row, version) for row in request.heads)
    depends = set_from_wire(request.depends, "depends")
    _check_passages(passages, dim)
    _check_heads(heads)
    _check_whole(passages, heads, depends=bool(depends))
    if gtid in depends:
        raise WireError("depends", "a batch cannot depend on itself")
    keys = tuple(map(key_from_wire, request.keys))
    _check_keys(keys, heads)
    return WriteBatch(gtid, version, passages, heads, depends, keys)


def check_document_id(document_id: str, field: str) -> None:
    """1 to 512 bytes of UTF-8 without control characters. Raises WireError."""
    if not 1 <= len(document_id.encode()) <= DOCUMENT_ID_BYTES_MAX:
        raise WireError(field, f"must be 1 to {DOCUMENT_ID_BYTES_MAX} bytes in UTF-8")
    if any(unicodedata.category(letter) == "Cc" for letter in document_id):
        raise WireError(field, "must not contain control characters")


def queries_of(request: shard_pb2.SearchShardsRequest, dim: int, queries_max: int) -> NDArray[np.float32]:
    """The queries as unit float32 rows (n, dim), (n, 0) in LEXICAL mode. Raises WireError."""
    if not 1 <= len(request.queries) <= queries_max:
        raise WireError("queries", f"a search holds 1 to {queries_max} queries, not {len(request.queries)}")
    if request.mode == passage_pb2.SEARCH_MODE_LEXICAL:
        for number, query in enumerate(request.queries):
            if query.HasField("vector"):
                raise WireError(f"queries[{number}].vector", "has no meaning in mode LEXICAL")
        return np.empty((len(request.queries), 0), dtype=np.float32)
    for number, query in enumerate(request.queries):
        if query.vector.dim != dim or len(query.vector.data) != 4 * dim:
            raise WireError(f"queries[{number}].vector", f"must have {dim} dimensions, not {query.vector.dim}")
    flat = b"".join(query.vector.data for query in request.queries)
    vectors = np.frombuffer(flat, dtype="<f4").reshape(len(request.queries), dim).astype(np.float32)
    bad = _not_unit(vectors)
    if bad is not None:
        raise WireError(f"queries[{bad}].vector", "must be finite and of unit length")
    return vectors


def mode_of(request: shard_pb2.SearchShardsRequest) -> passage_pb2.SearchMode.ValueType:
    """How to search, DENSE when nothing is said. Raises WireError on a mode this version does not know."""
    if request.mode == passage_pb2.SEARCH_MODE_UNSPECIFIED:
        return passage_pb2.SEARCH_MODE_DENSE
    if request.mode not in passage_pb2.SearchMode.values():
        raise WireError("mode", f"{request.mode} is not a mode; use DENSE, LEXICAL, HYBRID or TWO_STAGE")
    return request.mode


def texts_of(request: shard_pb2.SearchShardsRequest, text_bytes_max: int) -> list[str]:
    """What BM25 searches for, by query. A text without a single term finds nothing, which is no error.

    Raises WireError when one is empty or too long.
    """
    for number, query in enumerate(request.queries):
        if not 1 <= len(query.text.encode()) <= text_bytes_max:
            size = len(query.text.encode())
            raise WireError(f"queries[{number}].text", f"must be 1 to {text_bytes_max} bytes in UTF-8, not {size}")
    return [query.text for query in request.queries]


def _check_passages(rows: Sequence[PassageRow], dim: int) -> None:
    seen: set[tuple[str, int]] = set()
    for number, row in enumerate(rows):
        field = f"passages[{number}]"
        check_document_id(row.document_id, f"{field}.document_id")
        if row.ordinal >= PASSAGES_MAX:
            raise WireError(f"{field}.ordinal", f"must be below {PASSAGES_MAX}")
        if (row.document_id, row.ordinal) in seen:
            raise WireError(f"{field}.ordinal", f"{row.document_id}#{row.ordinal} is given twice")
        seen.add((row.document_id, row.ordinal))
        if len(row.vector) != 2 * dim:
            raise WireError(f"{field}.vector_f16", f"must be {2 * dim} bytes for {dim} dimensions")
        _check_payload(row, field)
    if rows:
        flat = b"".join(row.vector for row in rows)
        bad = _not_unit(np.frombuffer(flat, dtype="<f2").reshape(len(rows), dim).astype(np.float32))
        if bad is not None:
            raise WireError(f"passages[{bad}].vector_f16", "must be finite and of unit length")


def _check_payload(row: PassageRow, field: str) -> None:
    try:
        passage = passage_pb2.Passage.FromString(row.payload)
    except DecodeError:
        raise WireError(f"{field}.payload", "is not a serialized ostraka.v1.Passage") from None
    named = passage.document_id not in ("", row.document_id)
    if named or (passage.document_id and passage.ordinal != row.ordinal):
        raise WireError(f"{field}.payload", f"is passage {passage.document_id}#{passage.ordinal}, not the row's")


def _check_heads(heads: Sequence[HeadRow]) -> None:
    seen: set[str] = set()
    for number, head in enumerate(heads):
        field = f"heads[{number}]"
        check_document_id(head.document_id, f"{field}.document_id")
        if head.document_id in seen:
            raise WireError(f"{field}.document_id", "is given twice")
        seen.add(head.document_id)
        if head.passages > PASSAGES_MAX:
            raise WireError(f"{field}.passages", f"must be at most {PASSAGES_MAX}")


def _check_keys(keys: Sequence[OpKey], heads: Sequence[HeadRow]) -> None:
    completed = {head.document_id for head in heads}
    for number, key in enumerate(keys):
        field = f"keys[{number}]"
        if key.document_id not in completed:
            raise WireError(f"{field}.document_id", "names a document whose head is not in the batch, or twice")
        completed.discard(key.document_id)
        check_key(key, field)
        if len(key.content) != KEY_CONTENT_BYTES:
            raise WireError(f"{field}.content", f"must be {KEY_CONTENT_BYTES} bytes, not {len(key.content)}")


def check_key(key: OpKey, field: str) -> None:
    """Raises WireError for a key that is empty or too long."""
    if not 1 <= len(key.key.encode()) <= KEY_BYTES_MAX:
        raise WireError(f"{field}.key", f"must be 1 to {KEY_BYTES_MAX} bytes in UTF-8")


def _check_whole(passages: Sequence[PassageRow], heads: Sequence[HeadRow], *, depends: bool) -> None:
    """A head declares the passages 0..n-1; without earlier batches all of them are here."""
    ordinals: dict[str, set[int]] = {}
    for row in passages:
        ordinals.setdefault(row.document_id, set()).add(row.ordinal)
    for number, head in enumerate(heads):
        found, field = ordinals.get(head.document_id, set()), f"heads[{number}].passages"
        if found and max(found) >= head.passages:
            raise WireError(field, f"declares {head.passages} but passage {max(found)} is in the batch")
        if not depends and len(found) != head.passages:
            raise WireError(field, f"declares {head.passages} but {len(found)} are here and nothing came before")


def _not_unit(vectors: NDArray[np.float32]) -> int | None:
    """The first row that is not finite or not of unit length, or None."""
    with np.errstate(invalid="ignore", over="ignore"):
        norms = np.einsum("ij,ij->i", vectors, vectors)
        good = np.abs(norms - 1.0) <= 2 * NORM_TOLERANCE
    return None if good.all() else int(np.flatnonzero(~good)[0])
