"""A caller's session token: what it has written and seen, made by the mesh and kept by this client.

The calls of one client overlap, and a write's reply speaks of that write alone, so the newest token is not the
whole session: this client unites them. Layout (little-endian, `services/quorum/session.py` writes it): one version
byte, then per collection and shard: u16 name length, name, u32 shard, u32 sources; per source: u64 id, u32 count,
and count times u64 first, u64 last, inclusive. A token of another version replaces what was there.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator

_VERSION = 1
_Span = tuple[int, int]
_Entry = tuple[bytes, int, int]


class Session:
    """The union of the tokens of every reply so far."""

    def __init__(self, token: bytes = b"") -> None:
        self._token = token

    @property
    def token(self) -> bytes:
        """What the next read carries; empty at the beginning."""
        return self._token

    def add(self, token: bytes) -> None:
        """A reply carried `token`."""
        if not token or token == self._token:
            return
        try:
            self._token = _encode([*_entries(self._token), *_entries(token)])
        except (ValueError, struct.error):
            self._token = token


def _entries(token: bytes) -> Iterator[tuple[_Entry, list[_Span]]]:
    """((collection, shard, source), spans) of a token. Raises ValueError or struct.error for another layout."""
    if not token:
        return
    if token[0] != _VERSION:
        raise ValueError(f"session token of version {token[0]}")
    at = 1
    while at < len(token):
        (length,) = struct.unpack_from("<H", token, at)
        name = token[at + 2 : at + 2 + length]
        at += 2 + length
        shard, sources = struct.unpack_from("<II", token, at)
        at += 8
        for _ in range(sources):
            source, count = struct.unpack_from("<QI", token, at)
            at += 12
            yield (name, shard, source), [struct.unpack_from("<QQ", token, at + 16 * index) for index in range(count)]
            at += 16 * count


def _encode(entries: Iterable[tuple[_Entry, list[_Span]]]) -> bytes:
    session: dict[tuple[bytes, int], dict[int, list[_Span]]] = {}
    for (name, shard, source), spans in entries:
        session.setdefault((name, shard), {}).setdefault(source, []).extend(spans)
    parts = [struct.pack("<B", _VERSION)]
    # The mesh sorts by name as text; for UTF-8 that is the order of the bytes.
    for (name, shard), sources in sorted(session.items()):
        parts.append(struct.pack("<H", len(name)) + name + struct.pack("<II", shard, len(sources)))
        for source, spans in sorted(sources.items()):
            united = _unite(spans)
            parts.append(struct.pack("<QI", source, len(united)))
            parts += [struct.pack("<QQ", first, last) for first, last in united]
    return b"".join(parts)


def _unite(spans: Iterable[_Span]) -> list[_Span]:
    """Disjoint ascending spans with the same members; neighbours become one."""
    united: list[_Span] = []
    for first, last in sorted(spans):
        if united and first <= united[-1][1] + 1:
            united[-1] = (united[-1][0], max(last, united[-1][1]))
        else:
            united.append((first, last))
    return united
