"""A filter as a restricted view: the alive bitmaps, ANDed with which rows meet the condition.

Searches then run on the restricted view as on any other. Since a row never changes, neither does the bitmap of a
condition over a sealed segment: it is computed once and kept, within a number of bytes. Over the delta only rows that
came since the condition was last asked are looked at.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, TypeAlias

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from ostraka.v1 import passage_pb2
from services.quorum.rows import PassageRow
from services.runtime.conditions import AllOf, AnyOf, Condition, Not, meets, values_of
from services.runtime.config import MetadataKind
from services.shard import alive as bits
from services.shard.delta import Delta
from services.shard.metadata_index import MetadataDamagedError, MetadataIndex, MetadataUnavailableError, Span
from services.shard.rows_reader import RowsReader
from services.shard.view import Part, View

CACHE_BYTES_MAX: Final = 32 * 1024 * 1024
"""Of one replica: 250 conditions over a million rows."""
ROWS_READ_MAX: Final = 256
"""Up to so many new rows are read and evaluated themselves; for more, the index is asked."""
ENTRY_OVERHEAD_BYTES: Final = 512
Mask: TypeAlias = NDArray[np.bool_]
Rids: TypeAlias = NDArray[np.int64]


FILTER_FAILURES: Final = (MetadataDamagedError, MetadataUnavailableError)
"""Why a replica cannot answer a filter now; another may."""


@dataclass(frozen=True, slots=True)
class _Seen:
    """What was found for the rows of one part: `rids` (n,) int64 of a delta in its order, empty for a segment, whose
    rows never change; `bitmap` by position."""

    rids: Rids
    bitmap: NDArray[np.uint8]

    @property
    def bytes(self) -> int:
        return self.rids.nbytes + self.bitmap.nbytes + ENTRY_OVERHEAD_BYTES


_Key = tuple[str, Condition]
_NO_RIDS: Final = np.empty(0, dtype=np.int64)
_DELTA: Final = ""


class FilterCache:
    """Bitmaps by part and condition, least recently used out first. Any thread."""

    def __init__(self, bytes_max: int = CACHE_BYTES_MAX) -> None:
        self._bytes_max = bytes_max
        self._kept: OrderedDict[_Key, _Seen] = OrderedDict()
        self._lock = threading.Lock()
        self.bytes = 0
        self.generation = 0
        """Grows when everything is forgotten; what was computed before must not be kept after."""

    def get(self, key: _Key) -> _Seen | None:
        with self._lock:
            found = self._kept.get(key)
            if found is not None:
                self._kept.move_to_end(key)
            return found

    def put(self, key: _Key, seen: _Seen, generation: int) -> None:
        with self._lock:
            if generation != self.generation or seen.bytes > self._bytes_max:
                return
            old = self._kept.pop(key, None)
            self.bytes += seen.bytes - (old.bytes if old is not None else 0)
            self._kept[key] = seen
            while self.bytes > self._bytes_max:
                _, dropped = self._kept.popitem(last=False)
                self.bytes -= dropped.bytes

    def clear(self) -> None:
        with self._lock:
            self._kept.clear()
            self.bytes = 0
            self.generation += 1


class Filters:
    """What one replica needs to answer filters. Any thread; the caller lends its read connection."""

    def __init__(self, index: MetadataIndex, cache: FilterCache | None = None) -> None:
        self.index = index
        self.cache = cache or FilterCache()

    @property
    def declared(self) -> Mapping[str, MetadataKind]:
        return self.index.declared

    def restrict(self, view: View, condition: Condition, reader: RowsReader) -> View:
        """The view in which exactly those live rows are alive that meet the condition.

        Raises MetadataUnavailableError, MetadataDamagedError, DamagedRowError, StoreError.
        """
        generation = self.cache.generation
        segments = [self.cache.get((_name(part), condition)) for part in view.parts]
        unknown = [number for number, seen in enumerate(segments) if seen is None]
        groups = [view.parts[number].segment.rids for number in unknown]
        known_mask, new = _carried(self.cache.get((_DELTA, condition)), view.delta.rids)
        fresh = view.delta.rids[new]
        few = len(fresh) <= ROWS_READ_MAX and not groups
        masks = self._masks(reader, condition, groups if few else [*groups, fresh])
        for number, mask in zip(unknown, masks, strict=False):
            seen = segments[number] = _Seen(_NO_RIDS, bits.from_mask(mask))
            self.cache.put((_name(view.parts[number]), condition), seen, generation)
        if len(fresh):
            known_mask[new] = self._read(reader, condition, fresh) if few else masks[-1]
            delta_seen = _Seen(view.delta.rids.copy(), bits.from_mask(known_mask))
            self.cache.put((_DELTA, condition), delta_seen, generation)
        parts = [
            _restricted(part, seen.bitmap) for part, seen in zip(view.parts, segments, strict=True) if seen is not None
        ]
        return replace(view, parts=tuple(parts), delta=_restricted_delta(view.delta, bits.from_mask(known_mask)))

    def check(self, rows: Mapping[int, PassageRow], condition: Condition) -> None:
        """Whether passages about to be served, whose checksums held, really meet the condition. Raises
        MetadataDamagedError."""
        wrong = [rid for rid, row in rows.items() if not self.met_by(row, condition)]
        if wrong:
            raise MetadataDamagedError(wrong)

    def met_by(self, row: PassageRow, condition: Condition) -> bool:
        """Whether one verified passage meets the condition."""
        try:
            passage = passage_pb2.Passage.FromString(row.payload)
        except DecodeError:
            return False
        return meets(values_of(passage, row.document_id, self.declared), condition)

    def _read(self, reader: RowsReader, condition: Condition, rids: Rids) -> Mask:
        found = reader.by_rid(int(rid) for rid in rids)
        return np.array([int(rid) in found and self.met_by(found[int(rid)].passage, condition) for rid in rids], bool)

    def _masks(self, reader: RowsReader, condition: Condition, groups: Sequence[Rids]) -> list[Mask]:
        """For each group of rids, in its order, which of them meet the condition."""
        filled = [group for group in groups if len(group)]
        if not filled:
            return [np.zeros(len(group), dtype=np.bool_) for group in groups]
        span = Span(min(int(group.min()) for group in filled), max(int(group.max()) for group in filled))
        return self._evaluated(reader, condition, groups, span)

    def _evaluated(self, reader: RowsReader, condition: Condition, groups: Sequence[Rids], span: Span) -> list[Mask]:
        if isinstance(condition, Not):
            return [~mask for mask in self._evaluated(reader, condition.part, groups, span)]
        if isinstance(condition, (AllOf, AnyOf)):
            narrows = isinstance(condition, AllOf)
            masks = self._evaluated(reader, condition.parts[0], groups, span)
            for part in condition.parts[1:]:
                if not any(mask.any() if narrows else not mask.all() for mask in masks):
                    break  # nothing left to exclude, or nothing left to add
                for mask, other in zip(masks, self._evaluated(reader, part, groups, span), strict=True):
                    if narrows:
                        mask &= other
                    else:
                        mask |= other
            return masks
        found = self.index.rids(reader.database, condition, span)
        return [np.isin(group, found) for group in groups]


def _carried(seen: _Seen | None, rids: Rids) -> tuple[Mask, NDArray[np.int64]]:
    """(what is known of a delta's rows by position, the positions of which nothing is known)"""
    mask = np.zeros(len(rids), dtype=np.bool_)
    if seen is None or not len(seen.rids):
        return mask, np.arange(len(rids), dtype=np.int64)
    known = bits.to_mask(seen.bitmap, len(seen.rids))
    shared = min(len(seen.rids), len(rids))
    if np.array_equal(seen.rids[:shared], rids[:shared]):  # the same block, then or since: the usual case
        mask[:shared] = known[:shared]
        return mask, np.arange(shared, len(rids), dtype=np.int64)
    order = np.argsort(seen.rids)
    places = np.minimum(np.searchsorted(seen.rids, rids, sorter=order), len(order) - 1)
    positions = order[places]
    held = seen.rids[positions] == rids
    mask[held] = known[positions[held]]
    return mask, np.flatnonzero(~held).astype(np.int64)


def _name(part: Part) -> str:
    """Stands for the segment's rows and their positions."""
    return f"{part.segment.name} {part.segment.rows}"


def _restricted(part: Part, bitmap: NDArray[np.uint8]) -> Part:
    alive = part.alive & bitmap
    return Part(part.segment, alive, bits.count(alive))


def _restricted_delta(delta: Delta, bitmap: NDArray[np.uint8]) -> Delta:
    alive = delta.alive & bitmap
    return replace(delta, alive=alive, live=bits.count(alive))
