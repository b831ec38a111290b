"""Reading a replica's rows: by document for the protocol, by rid for searches, in bulk for views and segments.

Every row is checked against its checksum before it leaves this module; one that fails raises `DamagedRowError`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from services.quorum.clock import Version
from services.quorum.gtid import Gtid, GtidSet
from services.quorum.rows import HeadRow, Op, PassageRow
from services.shard import op_keys, schema
from services.shard.damage import DamagedRowError, RowName
from services.shard.replica_state import read_state
from services.shard.store import Database, Row, StoreError

RIDS_PER_STATEMENT = 2_048
OPS_PER_STEP = 4_096
_ROWS_BETWEEN = "SELECT rid, document, ordinal, hlc, src, vec, payload, sum FROM passages WHERE rid BETWEEN ? AND ?"
_ROWS_LISTED = (
    "SELECT rid, document, ordinal, hlc, src, vec, payload, sum FROM passages"
    " WHERE rid IN (SELECT value FROM json_each(?))"
)
_OPS = "SELECT src, seq, hlc, version_src, documents, content, sum FROM ops"


@dataclass(frozen=True, slots=True)
class LiveRow:
    """A row as a search result needs it."""

    rid: int
    passage: PassageRow


class RowsReader:
    """Reads on one connection. Inside `database.reading()` or a write transaction all reads see one state."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def head(self, document_id: str) -> HeadRow | None:
        """The document's head, tombstones included. Raises DamagedRowError, StoreError."""
        row = self.database.first("SELECT hlc, src, n, sum FROM heads WHERE document = ?", (document_id,))
        if row is None:
            return None
        head, sound = _head(document_id, *row)
        if not sound:
            raise DamagedRowError([RowName(document_id, -1, head.version)])
        return head

    def live_passages(self, document_id: str) -> list[PassageRow]:
        """The passages of the head's version, by ordinal. Raises DamagedRowError, also for missing ones, StoreError."""
        head = self.head(document_id)
        if head is None or not head.passages:
            return []
        rows = self.database.rows(
            "SELECT document, ordinal, hlc, src, vec, payload, sum FROM passages"
            " WHERE document = ? AND hlc = ? AND src = ? AND ordinal < ? ORDER BY ordinal",
            (document_id, schema.to_sql(head.version.hlc), schema.to_sql(head.version.source), head.passages),
        )
        if len(rows) < head.passages:
            missing = sorted(set(range(head.passages)).difference(row[1] for row in rows))
            raise DamagedRowError([RowName(document_id, ordinal, head.version) for ordinal in missing])
        return _passages(rows)

    def is_damaged(self, name: RowName) -> bool:
        """Whether the row is live and fails its checksum, or cannot be read at all."""
        try:
            head = self.head(name.document_id)
            if name.ordinal < 0:
                # No head at all, although something was damaged that stood for one.
                return head is None and name.version != Version.ZERO
            if head is None or head.version != name.version or name.ordinal >= head.passages:
                return False
            return name.ordinal not in {row.ordinal for row in self.live_passages(name.document_id)}
        except DamagedRowError as error:
            return name in error.names or name.ordinal < 0
        except StoreError:
            return True

    def staged_passages(self, op: Op) -> list[PassageRow]:
        """Passages that `op` stored and whose document's head is older. Raises DamagedRowError, StoreError."""
        found: list[Row] = []
        for document_id in op.document_ids:
            head = self.head(document_id)
            if head is None or head.version < op.version:
                found += self.database.rows(
                    "SELECT document, ordinal, hlc, src, vec, payload, sum FROM passages"
                    " WHERE document = ? AND hlc = ? AND src = ? ORDER BY ordinal",
                    (document_id, schema.to_sql(op.version.hlc), schema.to_sql(op.version.source)),
                )
        return _passages(found)

    def op(self, gtid: Gtid) -> Op | None:
        """What a batch wrote; None when it is not remembered or fails its checksum. Raises StoreError."""
        row = self.database.first(
            f"{_OPS} WHERE src = ? AND seq = ?",
            (schema.to_sql(gtid.source), schema.to_sql(gtid.seq)),
        )
        op = None if row is None else _op(row)
        try:
            return None if op is None else replace(op, keys=op_keys.of(self.database, gtid))
        except op_keys.KeyDamagedError:
            return None

    def ops_of_version(self, version: Version, document_id: str) -> list[Gtid]:
        """The batches that wrote this version of a document. Raises StoreError."""
        rows = self.database.rows(
            f"{_OPS} WHERE hlc = ? AND version_src = ?",
            (schema.to_sql(version.hlc), schema.to_sql(version.source)),
        )
        found = [op for op in map(_op, rows) if op is not None]
        return [op.gtid for op in found if document_id in op.document_ids]

    def ops_of_document(self, document_id: str) -> list[Gtid]:
        """Every batch that wrote any version of a document; reads all operations. Raises StoreError."""
        rows = self.database.rows(f"{_OPS} WHERE instr(documents, ?)", (schema.documents_to_sql((document_id,))[1:-1],))
        found = [op for op in map(_op, rows) if op is not None]
        return [op.gtid for op in found if document_id in op.document_ids]

    def has_version(self, version: Version) -> bool:
        """Whether an applied batch had this version. Raises StoreError."""
        wanted = (schema.to_sql(version.hlc), schema.to_sql(version.source))
        return self.database.first("SELECT 1 FROM ops WHERE hlc = ? AND version_src = ?", wanted) is not None

    def ops_after(self, gtid: Gtid | None, limit: int) -> list[Op | Gtid]:
        """The next operations by gtid, or what stands as the gtid of one that fails its checksum. Raises StoreError."""
        if gtid is None:
            rows = self.database.rows(f"{_OPS} ORDER BY src, seq LIMIT ?", (limit,))
        else:
            after = (schema.to_sql(gtid.source), schema.to_sql(gtid.seq))
            rows = self.database.rows(f"{_OPS} WHERE (src, seq) > (?, ?) ORDER BY src, seq LIMIT ?", (*after, limit))
        return [_op(row) or Gtid(schema.from_sql(row[0]), schema.from_sql(row[1])) for row in rows]

    def ops(self) -> Iterator[Op | Gtid]:
        """All of them, in steps. Raises StoreError."""
        after: Gtid | None = None
        while found := self.ops_after(after, OPS_PER_STEP):
            yield from found
            after = found[-1].gtid if isinstance(found[-1], Op) else found[-1]

    def applied(self) -> tuple[GtidSet, int]:
        """The applied set and the highest hybrid logical clock. Raises StoreError, also when they fail their
        checksum."""
        state = read_state(self.database)
        applied = self.intervals()
        if state is None or applied is None or applied.digest() != state.applied:
            raise StoreError(f"{self.database.path}: the applied set fails its checksum")
        return applied, state.hlc_max

    def intervals(self) -> GtidSet | None:
        """The applied set as its table has it; None when that is impossible. Raises StoreError."""
        found: dict[int, list[tuple[int, int]]] = {}
        try:
            for source, low, high in self.database.rows("SELECT src, lo, hi FROM applied ORDER BY src, lo"):
                span = (schema.from_sql(low), schema.from_sql(high))
                found.setdefault(schema.from_sql(source), []).append(span)
            return GtidSet.from_intervals(found)
        except (TypeError, ValueError):  # a flipped bit may change a column's type
            return None

    def heads(self) -> Iterator[HeadRow | RowName]:
        """Every head, tombstones included, or the name of one that fails its checksum. Raises StoreError."""
        for document_id, *rest in self.database.each("SELECT document, hlc, src, n, sum FROM heads"):
            head, sound = _head(document_id, *rest)
            yield head if sound else RowName(document_id, -1, head.version)

    def table_rows(self, first: int, last: int) -> Iterator[tuple[int, PassageRow | RowName]]:
        """(rid, row, or its name when it is damaged) from `first` to `last`, read from the table alone. Raises
        StoreError."""
        for row in self.database.each(_ROWS_BETWEEN, (first, last)):
            yield row[0], passage_of(row[1:])

    def rid_of(self, name: RowName) -> int | None:
        """Where the index of names leads. Raises StoreError."""
        row = self.database.first(
            "SELECT rid FROM passages WHERE document = ? AND ordinal = ? AND hlc = ? AND src = ?",
            (name.document_id, name.ordinal, schema.to_sql(name.version.hlc), schema.to_sql(name.version.source)),
        )
        return None if row is None else row[0]

    def by_rid(self, rids: Iterable[int]) -> dict[int, LiveRow]:
        """Rows by rid; purged ones are absent. Raises DamagedRowError naming all that fail, StoreError."""
        found: dict[int, LiveRow] = {}
        bad: list[RowName] = []
        for row in self._rows_by_rid(list(rids)):
            passage = passage_of(row[1:])
            if isinstance(passage, PassageRow):
                found[row[0]] = LiveRow(row[0], passage)
            else:
                bad.append(passage)
        if bad:
            raise DamagedRowError(bad)
        return found

    def vectors(self, rids: Sequence[int]) -> tuple[list[bytes | None], list[RowName]]:
        """(vector or None for each rid in order, the rows that fail their checksum). Raises StoreError."""
        found, bad = self.sound(rids)
        return [None if row is None else row.vector for row in found], bad

    def sound(self, rids: Sequence[int]) -> tuple[list[PassageRow | None], list[RowName]]:
        """(row or None for each rid in order, the rows that fail their checksum). Raises StoreError."""
        found: dict[int, PassageRow] = {}
        bad: list[RowName] = []
        for row in self._rows_by_rid(rids):
            passage = passage_of(row[1:])
            if isinstance(passage, PassageRow):
                found[row[0]] = passage
            else:
                bad.append(passage)
        return [found.get(rid) for rid in rids], bad

    def keys(self, rids: Sequence[int]) -> dict[int, tuple[str, int]]:
        """(document, ordinal) by rid. Raises StoreError."""
        found: dict[int, tuple[str, int]] = {}
        for start in range(0, len(rids), RIDS_PER_STATEMENT):
            listed = json.dumps([int(rid) for rid in rids[start : start + RIDS_PER_STATEMENT]])
            sql = "SELECT rid, document, ordinal FROM passages WHERE rid IN (SELECT value FROM json_each(?))"
            found.update({row[0]: (row[1], row[2]) for row in self.database.rows(sql, (listed,))})
        return found

    def heads_after(self, document_id: str, limit: int) -> list[HeadRow | RowName]:
        """The next heads in the order of their documents, or the names of damaged ones. Raises StoreError."""
        rows = self.database.rows(
            "SELECT document, hlc, src, n, sum FROM heads WHERE document > ? ORDER BY document LIMIT ?",
            (document_id, limit),
        )
        found = [_head(*row) for row in rows]
        return [head if sound else RowName(head.document_id, -1, head.version) for head, sound in found]

    def stored_of(self, head: HeadRow) -> int:
        """How many passages of the head's version are stored. Raises StoreError."""
        row = self.database.first(
            "SELECT count(*) FROM passages WHERE document = ? AND hlc = ? AND src = ? AND ordinal < ?",
            (head.document_id, schema.to_sql(head.version.hlc), schema.to_sql(head.version.source), head.passages),
        )
        return 0 if row is None else int(row[0])

    def rid_max(self) -> int:
        """The greatest rid in use; 0 without any. Raises StoreError."""
        row = self.database.first("SELECT max(rid) FROM passages")
        return (row and row[0]) or 0

    def segments(self) -> dict[str, str]:
        """Manifest sha256 by segment name. Raises StoreError."""
        return {row[0]: row[1] for row in self.database.rows("SELECT name, sha256 FROM segments")}

    def _rows_by_rid(self, rids: Sequence[int]) -> Iterator[Row]:
        for start in range(0, len(rids), RIDS_PER_STATEMENT):
            listed = json.dumps([int(rid) for rid in rids[start : start + RIDS_PER_STATEMENT]])
            yield from self.database.rows(_ROWS_LISTED, (listed,))


def _head(document_id: str, hlc: int, source: int, passages: int, checksum: bytes) -> tuple[HeadRow, bool]:
    """(the head, whether its checksum holds)"""
    if not all(isinstance(number, int) for number in (hlc, source, passages)):
        return HeadRow(document_id, 0, Version.ZERO), False
    head = HeadRow(document_id, passages, schema.version_of(hlc, source))
    return head, schema.head_sum(head) == checksum


def _op(row: Row) -> Op | None:
    """The operation of _OPS; None when it fails its checksum."""
    try:
        op = schema.op_of(row)
        return op if schema.op_sum(op) == row[6] else None
    except (TypeError, ValueError):  # a flipped bit may change a column's type
        return None


def passage_of(row: Row) -> PassageRow | RowName:
    """The passage of (document, ordinal, hlc, src, vec, payload, sum), or its name when it is damaged."""
    document_id, ordinal, hlc, source, vector, payload, checksum = row
    if not all(isinstance(number, int) for number in (ordinal, hlc, source)):  # a flipped bit may change a type
        return RowName(str(document_id), 0, Version.ZERO)
    version = schema.version_of(hlc, source)
    if not schema.is_passage_sum(checksum, document_id, ordinal, version, vector, payload):
        return RowName(document_id, ordinal, version)
    return PassageRow(document_id, ordinal, version, vector, payload)


def _passages(rows: Iterable[Row]) -> list[PassageRow]:
    checked = [passage_of(row) for row in rows]
    bad = [entry for entry in checked if isinstance(entry, RowName)]
    if bad:
        raise DamagedRowError(bad)
    return [entry for entry in checked if isinstance(entry, PassageRow)]
