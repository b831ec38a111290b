"""What fails its checksum: not served, reported, and made good.

Rows and operations are fetched anew from a peer; a segment is dropped, its rows are read from SQLite, and the next
build seals them again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from observability.logs import logger
from services.quorum.clock import Version
from services.quorum.gtid import GtidSet

NAMES_LOGGED = 8
_LOG = logger("shard")


@dataclass(frozen=True, slots=True)
class RowName:
    """Which row: a passage, or with `ordinal` -1 the head of a document."""

    document_id: str
    ordinal: int
    version: Version

    def __str__(self) -> str:
        return f"{self.document_id}#{self.ordinal}" if self.ordinal >= 0 else f"the head of {self.document_id}"


class DamagedRowError(Exception):
    """Some rows fail their checksum."""

    def __init__(self, names: Sequence[RowName]) -> None:
        self.names = tuple(names)
        super().__init__(f"{len(self.names)} rows fail their checksum, first {self.names[0]}")


class PartDamagedError(Exception):
    """Vectors that a part of the view was searched by are not those of its rows."""

    def __init__(self, part: str) -> None:
        self.part = part
        super().__init__(f"{part} holds other vectors than its rows")


class DamageLedger:
    """What one replica knows to be damaged, told from any thread, until it is made good."""

    def __init__(self, replica_id: str, rows: Iterable[RowName] = (), found: int = 0) -> None:
        """`rows` are damaged already; `found` more were, and have been made good."""
        self._replica_id = replica_id
        self._lock = threading.Lock()
        self._rows = frozenset(rows)
        self._parts: frozenset[str] = frozenset()
        self._ops = GtidSet.EMPTY
        self._doubted = False
        self._found = found + len(self._rows)

    @property
    def rows(self) -> frozenset[RowName]:
        """Live rows that fail their checksum."""
        return self._rows

    @property
    def parts(self) -> frozenset[str]:
        """Parts of the view, by name, whose files or memory are not what was written."""
        return self._parts

    @property
    def ops(self) -> GtidSet:
        """Applied batches whose operation is lost, so that peers cannot be repaired with them."""
        return self._ops

    @property
    def found(self) -> int:
        """Everything found damaged since the start, made good or not."""
        return self._found

    def add_rows(self, names: Iterable[RowName]) -> None:
        with self._lock:
            added = frozenset(names) - self._rows
            self._rows |= added
            self._found += len(added)
        if added:
            self._report("rows fail their checksum", sorted(map(str, added)))

    def add_part(self, name: str, reason: str) -> None:
        with self._lock:
            known = name in self._parts
            self._parts |= {name}
            self._found += not known
        if not known:
            self._report(reason, [name])

    def add_ops(self, gtids: GtidSet) -> None:
        with self._lock:
            added = gtids.difference(self._ops)
            self._ops = self._ops.union(added)
            self._found += len(added)
        if added:
            self._report("operations fail their checksum", [str(added)])

    def add_repaired(self, reason: str) -> None:
        """Something that could be derived anew at once."""
        with self._lock:
            self._found += 1
        self._report(reason, [])

    def doubt(self) -> None:
        """Something is wrong that cannot be named: a complete check is due now."""
        self._doubted = True

    def take_doubt(self) -> bool:
        """Whether a complete check was asked for since the last time."""
        doubted, self._doubted = self._doubted, False
        return doubted

    def keep_rows(self, still_damaged: Callable[[RowName], bool]) -> None:
        """Forget the rows that are not damaged any more."""
        if self._rows:
            with self._lock:
                self._rows = frozenset(name for name in self._rows if still_damaged(name))

    def part_replaced(self, name: str) -> None:
        with self._lock:
            self._parts -= {name}

    def ops_mended(self, gtids: GtidSet) -> None:
        with self._lock:
            self._ops = self._ops.difference(gtids)

    def _report(self, reason: str, named: list[str]) -> None:
        _LOG.error("damage found", replica=self._replica_id, reason=reason, named=named[:NAMES_LOGGED])
