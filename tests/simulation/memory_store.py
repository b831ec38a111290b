"""A replica's disk in memory: durable rows, and one transaction that is lost unless it is committed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from services.quorum.clock import Version
from services.quorum.gtid import Gtid, GtidSet
from services.quorum.replica import Forgotten
from services.quorum.rows import HeadRow, Op, PassageRow, WriteBatch

Passages = dict[tuple[Version, int], PassageRow]


class DurableRows:
    """What survives a crash. Implements `ReplicaRows`."""

    def __init__(self) -> None:
        self.heads: dict[str, HeadRow] = {}
        self.passages: dict[str, Passages] = {}
        self.ops: dict[Gtid, Op] = {}
        self.writers: dict[tuple[Version, str], list[Gtid]] = {}
        self.applied_set = GtidSet.EMPTY
        self.hlc_max = 0
        self.epoch: tuple[int, bool] | None = None
        self.lost = Forgotten()

    def forgotten(self) -> Forgotten:
        return self.lost

    def heads_of_all(self) -> Iterator[HeadRow]:
        yield from self.heads.values()

    def ops_of_all(self) -> Iterator[Op]:
        yield from self.ops.values()

    def copy_rows(self, other: DurableRows) -> None:
        """Take over what another disk holds, its epoch excepted: that belongs to whose disk it is."""
        self.heads, self.ops = dict(other.heads), dict(other.ops)
        self.passages = {document_id: dict(rows) for document_id, rows in other.passages.items()}
        self.writers = {name: list(gtids) for name, gtids in other.writers.items()}
        self.applied_set, self.hlc_max, self.lost = other.applied_set, other.hlc_max, other.lost

    def head(self, document_id: str) -> HeadRow | None:
        return self.heads.get(document_id)

    def rows_of(self, document_id: str) -> Passages:
        return self.passages.get(document_id, {})

    def op(self, gtid: Gtid) -> Op | None:
        return self.ops.get(gtid)

    def applied(self) -> tuple[GtidSet, int]:
        return self.applied_set, self.hlc_max

    def ops_of_version(self, version: Version, document_id: str) -> list[Gtid]:
        return list(self.writers.get((version, document_id), ()))

    def live_passages(self, document_id: str) -> list[PassageRow]:
        head = self.head(document_id)
        if head is None:
            return []
        rows = self.rows_of(document_id)
        return [row for key, row in sorted(rows.items()) if key[0] == head.version and key[1] < head.passages]

    def staged_passages(self, op: Op) -> list[PassageRow]:
        found = []
        for document_id in op.document_ids:
            head = self.head(document_id)
            if head is None or op.version > head.version:
                rows = self.rows_of(document_id)
                found += [row for key, row in sorted(rows.items()) if key[0] == op.version]
        return found


class Transaction(DurableRows):
    """Changes on top of durable rows. Implements `ReplicaStore`; nothing is durable before `commit`."""

    def __init__(self, base: DurableRows) -> None:
        super().__init__()
        self._base = base
        self.touched: dict[str, None] = {}
        self.dropped_ops: dict[Gtid, Op] = {}
        self.dropped_heads: set[str] = set()
        self.lost = base.lost

    def head(self, document_id: str) -> HeadRow | None:
        if document_id in self.dropped_heads:
            return None
        return self.heads.get(document_id) or self._base.head(document_id)

    def rows_of(self, document_id: str) -> Passages:
        own = self.passages.get(document_id)
        return self._base.rows_of(document_id) if own is None else own

    def op(self, gtid: Gtid) -> Op | None:
        if gtid in self.dropped_ops:
            return None
        return self.ops.get(gtid) or self._base.op(gtid)

    def ops_of_version(self, version: Version, document_id: str) -> list[Gtid]:
        own = [op.gtid for op in self.ops.values() if op.version == version and document_id in op.document_ids]
        known = dict.fromkeys((*self._base.ops_of_version(version, document_id), *own))
        return [gtid for gtid in known if gtid not in self.dropped_ops]

    def oldest_ops(self, hlc: int, among: GtidSet, limit: int) -> list[Op]:
        found = [op for op in self._base.ops.values() if op.version.hlc <= hlc and op.gtid in among]
        return sorted(found, key=lambda op: op.version)[:limit]

    def drop_op(self, op: Op) -> None:
        self.ops.pop(op.gtid, None)
        self.dropped_ops[op.gtid] = op

    def drop_staged(self, document_id: str, version: Version) -> None:
        rows = self.rows_of(document_id)
        self.passages[document_id] = {key: row for key, row in rows.items() if key[0] != version}

    def drop_tombstone(self, document_id: str) -> None:
        self.heads.pop(document_id, None)
        self.dropped_heads.add(document_id)
        self.touched[document_id] = None

    def put_forgotten(self, added: GtidSet, floor: Version) -> None:
        self.lost = Forgotten(self.lost.gtids.union(added), floor)

    def damaged(self, document_ids: Sequence[str]) -> bool:
        return False

    def conflicts(self, batch: WriteBatch) -> bool:
        heads = [(head, self.head(head.document_id)) for head in batch.heads]
        if any(held is not None and held.version == head.version and held != head for head, held in heads):
            return True
        stored = [(row, self.rows_of(row.document_id).get((row.version, row.ordinal))) for row in batch.passages]
        return any(held is not None and held != row for row, held in stored)

    def put_head(self, head: HeadRow) -> None:
        self.heads[head.document_id] = head
        self.dropped_heads.discard(head.document_id)
        kept = {key: row for key, row in self.rows_of(head.document_id).items() if key[0] >= head.version}
        self.passages[head.document_id] = kept
        self.touched[head.document_id] = None

    def put_passages(self, rows: Sequence[PassageRow]) -> None:
        for row in rows:
            own = self.passages.setdefault(row.document_id, dict(self.rows_of(row.document_id)))
            key = (row.version, row.ordinal)
            held = own.get(key)
            if held is None or (row.payload, row.vector) > (held.payload, held.vector):
                own[key] = row
            self.touched[row.document_id] = None

    def put_op(self, op: Op) -> None:
        self.ops[op.gtid] = op
        self.dropped_ops.pop(op.gtid, None)

    def put_state(self, applied_added: GtidSet, hlc_max: int) -> None:
        self.applied_set = self.applied_set.union(applied_added)
        self.hlc_max = max(self.hlc_max, hlc_max)

    def put_epoch(self, epoch: int, frozen: bool) -> None:
        self.epoch = (epoch, frozen)

    def commit(self) -> None:
        """Everything becomes durable in one step."""
        base = self._base
        base.heads.update(self.heads)
        for document_id in self.dropped_heads:
            base.heads.pop(document_id, None)
        base.passages.update(self.passages)
        for gtid, op in self.ops.items():
            if gtid not in base.ops:
                base.ops[gtid] = op
                for document_id in op.document_ids:
                    base.writers.setdefault((op.version, document_id), []).append(gtid)
        for op in self.dropped_ops.values():
            if base.ops.pop(op.gtid, None) is not None:
                for document_id in op.document_ids:
                    base.writers[(op.version, document_id)].remove(op.gtid)
        base.lost = self.lost
        base.applied_set = base.applied_set.union(self.applied_set)
        base.hlc_max = max(base.hlc_max, self.hlc_max)
        base.epoch = self.epoch or base.epoch
