"""Where a listing goes on: an opaque, versioned text that names the last document of the page before.

The position is an id, not a number of documents, so writes between two pages neither repeat nor hide others. A token
belongs to one collection and one filter, and carries a checksum: what was cut or changed is refused, not guessed at.
"""

from __future__ import annotations

import base64
import binascii
import hashlib

from ostraka.v1 import passage_pb2

_VERSION = 1
_DIGEST_BYTES = 8
TOKEN_CHARS_MAX = 1_024


class PageTokenError(ValueError):
    """Not a token of this listing; the message says why."""


def encode(collection: str, wanted: passage_pb2.Filter | None, last_id: str) -> str:
    """The token of a listing that ended with `last_id`."""
    body = bytes([_VERSION]) + _listing(collection, wanted) + last_id.encode()
    return base64.urlsafe_b64encode(body + _digest(body)).rstrip(b"=").decode()


def decode(token: str, collection: str, wanted: passage_pb2.Filter | None) -> str:
    """The last id that `token` names; empty for an empty token, which means the beginning. Raises PageTokenError."""
    if not token:
        return ""
    if len(token) > TOKEN_CHARS_MAX:
        raise PageTokenError(f"is longer than any token: {len(token)} characters")
    try:
        data = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise PageTokenError("is not a page token") from None
    body, digest = data[:-_DIGEST_BYTES], data[-_DIGEST_BYTES:]
    if len(body) <= 1 + _DIGEST_BYTES or _digest(body) != digest:
        raise PageTokenError("is not a page token, or not a whole one")
    if body[0] != _VERSION:
        raise PageTokenError(f"is of version {body[0]}, which this router does not know")
    if body[1 : 1 + _DIGEST_BYTES] != _listing(collection, wanted):
        raise PageTokenError("belongs to another collection or filter")
    return body[1 + _DIGEST_BYTES :].decode()


def _listing(collection: str, wanted: passage_pb2.Filter | None) -> bytes:
    stated = b"" if wanted is None else b"\x01" + wanted.SerializeToString(deterministic=True)
    return _digest(collection.encode() + b"\0" + stated)


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=_DIGEST_BYTES, person=b"ostraka-page").digest()
