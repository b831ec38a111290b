"""Session tokens: what a caller has seen and written, per collection and shard.

A read at level SESSION is served by a view that contains the token, which gives read-your-writes and monotonic reads
across routers. The token is opaque to callers: one version byte, then entries, all little-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

from services.quorum.gtid import GtidSet, Span

Session = dict[tuple[str, int], GtidSet]
TOKEN_BYTES_MAX = 256 * 1024
_VERSION = 1


def merge_sessions(left: Mapping[tuple[str, int], GtidSet], right: Mapping[tuple[str, int], GtidSet]) -> Session:
    """Everything seen in either."""
    merged = dict(left)
    for key, seen in right.items():
        merged[key] = merged[key].union(seen) if key in merged else seen
    return merged


def encode_session(session: Mapping[tuple[str, int], GtidSet]) -> bytes:
    """The token of a session; equal sessions give equal tokens."""
    parts = [struct.pack("<B", _VERSION)]
    for collection, shard in sorted(session):
        intervals = session[collection, shard].intervals()
        name = collection.encode("utf-8")
        parts.append(struct.pack("<H", len(name)) + name + struct.pack("<II", shard, len(intervals)))
        for source in sorted(intervals):
            parts.append(struct.pack("<QI", source, len(intervals[source])))
            parts.extend(struct.pack("<QQ", first, last) for first, last in intervals[source])
    return b"".join(parts)


def decode_session(token: bytes) -> Session:
    """The session of a token; the empty token is the empty session. Raises ValueError on anything malformed."""
    if not token:
        return {}
    if len(token) > TOKEN_BYTES_MAX:
        raise ValueError(f"session token has {len(token)} bytes, more than {TOKEN_BYTES_MAX}")
    try:
        return _decode(token)
    except (struct.error, UnicodeDecodeError) as error:
        raise ValueError("session token is cut short or altered") from error


def _decode(token: bytes) -> Session:
    if token[0] != _VERSION:
        raise ValueError(f"session token has version {token[0]}, not {_VERSION}")
    session: Session = {}
    at = 1
    while at < len(token):
        (length,) = struct.unpack_from("<H", token, at)
        name = token[at + 2 : at + 2 + length].decode("utf-8")
        at += 2 + length
        shard, sources = struct.unpack_from("<II", token, at)
        at += 8
        intervals: dict[int, list[Span]] = {}
        for _ in range(sources):
            source, count = struct.unpack_from("<QI", token, at)
            at += 12
            if count * 16 > len(token) - at:
                raise ValueError("session token is cut short or altered")
            intervals[source] = [struct.unpack_from("<QQ", token, at + 16 * index) for index in range(count)]
            at += 16 * count
        session[name, shard] = GtidSet.from_intervals(intervals)
    return session
