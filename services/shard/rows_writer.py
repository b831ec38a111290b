"""Writing a replica's rows inside one transaction, and recording what that did to the live rows.

Implements `services.quorum.replica.ReplicaStore`. The protocol core decides what is written; this class keeps the
tables and answers afterwards, as one `Change`, which rows left the view and which entered it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from services.quorum.clock import Version
from services.quorum.gtid import Gtid, GtidSet
from services.quorum.rows import HeadRow, Op, PassageRow, WriteBatch
from services.shard import chunk_check, duplicates, live_bits, op_keys, recount, schema
from services.shard.analyzer import analyzer
from services.shard.damage import DamagedRowError, RowName
from services.shard.lexical_ahead import TermsAhead
from services.shard.live_bits import LiveBitsWriter
from services.shard.metadata_index import MetadataIndex
from services.shard.replica_state import ReplicaState, read_state, write_epoch, write_state
from services.shard.rows_reader import RowsReader, passage_of
from services.shard.store import Database, StoreCorruptError
from services.shard.view import DIGEST_MODULUS, Change

PURGE_ROWS = 512
_INTO_OPS = "INTO ops (src, seq, hlc, version_src, documents, content, sum) VALUES (?, ?, ?, ?, ?, ?, ?)"


class RowsWriter(RowsReader):
    """The one writer of a replica. `begin`, any number of calls, `commit` or `rollback`."""

    def __init__(
        self,
        database: Database,
        dim: int,
        metadata: MetadataIndex | None = None,
        terms: TermsAhead | None = None,
    ) -> None:
        super().__init__(database)
        self._dim = dim
        self._terms = terms or TermsAhead(analyzer("english"))
        self._metadata = metadata or MetadataIndex({})
        self._metadata.ensure(database)
        self._now_ms = 0
        self._applied, _ = self.applied()
        self._applied_staged = self._applied
        stored = read_state(database)
        if stored is None:
            raise StoreCorruptError(f"{database.path}: the state record fails its checksum")
        self._state = stored
        self._hlc_max = stored.hlc_max
        self._bits = LiveBitsWriter(database)
        self._unborn: set[int] = set()  # live by their head, but damaged: alive in no view
        self._lost_heads: set[str] = set()  # read in this transaction and damaged
        self._recount = False  # derive the digest anew from all heads
        self._rewrite = False  # write the state although it is the same
        self._dead: set[int] = set()
        self._born: dict[int, PassageRow] = {}
        self._heads: dict[str, HeadRow | None] = {}  # read or written in this transaction
        self._inserted: dict[int, PassageRow] = {}  # added in this transaction
        self._damaged: list[RowName] = []
        self._digest = 0
        self._documents = 0
        self._mending = False

    def begin(self, now_ms: int, *, mending: bool = False) -> None:
        """Open a transaction; `now_ms` dates the rows it supersedes. Raises StoreError.

        `mending`: a head that fails its checksum reads as absent, so that a peer's takes its place.
        """
        self._mending = mending
        self._damaged, self._heads, self._inserted = [], {}, {}
        self._now_ms = now_ms
        self._dead, self._born = set(), {}
        self._digest, self._documents = 0, 0
        self._unborn, self._lost_heads, self._recount, self._rewrite = set(), set(), False, False
        self._applied_staged, self._hlc_max = self._applied, self._state.hlc_max
        self.database.begin()

    def commit(self) -> Change:
        """Make the transaction durable and say what it changed. Raises StoreError; roll back then."""
        terms = [self._terms.take(row.payload) for row in self._born.values()]
        flat = b"".join(row.vector for row in self._born.values())
        state = self._next_state()
        if state != self._state or self._rewrite:
            write_state(self.database, state)
        self.database.commit()
        self._bits.committed()
        self._state = state
        self._applied, self._heads = self._applied_staged, {}
        return Change(
            dead=np.array(sorted(self._dead), dtype=np.int64),
            born=np.array(list(self._born), dtype=np.int64),
            vectors=np.frombuffer(flat, dtype="<f2").reshape(-1, self._dim),
            digest=self._digest,
            documents=self._documents,
            damaged=tuple(self._damaged),
            terms=terms,
        )

    def rollback(self) -> None:
        """Undo everything since `begin`. Raises StoreError."""
        self._heads = {}
        self._bits.rolled_back()
        self.database.rollback()

    def head(self, document_id: str) -> HeadRow | None:
        """The document's head, tombstones included. Raises DamagedRowError, StoreError."""
        if self._mending or document_id in self._heads:
            return self._stored_head(document_id)
        found = super().head(document_id)
        if self.database.in_transaction:
            self._heads[document_id] = found
        return found

    def damaged(self, document_ids: Sequence[str]) -> bool:
        """Whether the head of any of these documents fails its checksum; those are reported with the commit."""
        found = False
        for document_id in document_ids:
            try:
                self.head(document_id)
            except DamagedRowError as error:
                self._damaged += error.names
                found = True
        return found

    def conflicts(self, batch: WriteBatch) -> bool:
        """Whether rows of the batch's version are stored here with other content. Raises StoreError."""
        return duplicates.conflicts(self, batch)

    def put_head(self, head: HeadRow) -> None:
        """Replace the document's head, which the caller knows to be older or absent. Raises StoreError."""
        old = self._stored_head(head.document_id)
        lost = head.document_id in self._lost_heads
        version = _stored(head.version)
        self.database.rows(
            "INSERT OR REPLACE INTO heads (document, hlc, src, n, sum) VALUES (?, ?, ?, ?, ?)",
            (head.document_id, *version, head.passages, schema.head_sum(head)),
        )
        self._heads[head.document_id] = head
        self._lost_heads.discard(head.document_id)
        if lost:
            self._recount = True
        else:
            self._count(old, head)
        old_version, old_count = (None, 0) if old is None else (_stored(old.version), old.passages)
        superseded: list[int] = []
        for rid, ordinal, hlc, source, since_ms in self.database.rows(
            "SELECT rid, ordinal, hlc, src, superseded_ms FROM passages WHERE document = ?", (head.document_id,)
        ):
            # What a damaged head declared is no longer known, but which rows lived by it is.
            was = self._bits.is_live(rid) if lost else (hlc, source) == old_version and ordinal < old_count
            now = (hlc, source) == version and ordinal < head.passages
            if was and not now:
                self._dies(rid)
            elif now and not was:
                self._lives(rid)
            if not now and since_ms is None and (hlc, source) <= version:
                superseded.append(rid)
        if superseded:
            self.database.many(
                "UPDATE passages SET superseded_ms = ? WHERE rid = ?", [(self._now_ms, rid) for rid in superseded]
            )

    def put_passages(self, rows: Sequence[PassageRow]) -> None:
        """Store rows. One that is there already is kept, unless it fails its checksum; of two with other content the
        one with the greater checksum stays, so that replicas agree whatever came first. Raises StoreError."""
        for row in rows:
            rid = self._insert(row)
            if rid is None:
                continue
            self._metadata.add(self.database, rid, row.document_id, row.payload)
            self._inserted[rid] = row
            head = self._stored_head(row.document_id)
            if head is not None and head.version == row.version and row.ordinal < head.passages:
                self._born[rid] = row

    def put_op(self, op: Op) -> None:
        """Remember what a batch wrote. Raises StoreError."""
        gtid = (schema.to_sql(op.gtid.source), schema.to_sql(op.gtid.seq))
        version = _stored(op.version)
        row = (*gtid, *version, schema.documents_to_sql(op.document_ids), op.content, schema.op_sum(op))
        self.database.rows(f"INSERT OR IGNORE {_INTO_OPS}", row)
        if self.database.changed():
            if op.gtid not in self._applied:  # otherwise it was lost and has its term already
                self._digest += schema.op_digest(op)
        elif self.op(op.gtid) is None:
            self.database.rows(f"INSERT OR REPLACE {_INTO_OPS}", row)
        if op.keys:
            op_keys.put(self.database, op)

    def put_epoch(self, epoch: int, frozen: bool) -> None:
        """Remember the epoch. Raises StoreError."""
        write_epoch(self.database, epoch, frozen)

    def put_state(self, applied_added: GtidSet, hlc_max: int) -> None:
        """Extend the applied set and raise the clock. Raises StoreError."""
        before = self._applied_staged.intervals()
        self._applied_staged = self._applied_staged.union(applied_added)
        after = self._applied_staged.intervals()
        for source in applied_added.intervals():
            old, new = set(before.get(source, ())), set(after[source])
            biased = schema.to_sql(source)
            self.database.many(
                "DELETE FROM applied WHERE src = ? AND lo = ?", [(biased, schema.to_sql(lo)) for lo, _ in old - new]
            )
            self.database.many(
                "INSERT INTO applied (src, lo, hi) VALUES (?, ?, ?)",
                [(biased, schema.to_sql(lo), schema.to_sql(hi)) for lo, hi in sorted(new - old)],
            )
        self._hlc_max = hlc_max

    def put_probe(self) -> None:
        """Write something, to see whether that is possible. Raises StoreError."""
        self.database.rows("INSERT OR REPLACE INTO meta (k, v) VALUES ('probe', ?)", (self._now_ms,))

    def put_segment(self, name: str, manifest_sha256: str, replaced: Sequence[str]) -> None:
        """Publish a segment in place of others. Raises StoreError."""
        self.database.many("DELETE FROM segments WHERE name = ?", [(old,) for old in replaced])
        self.database.rows("INSERT OR REPLACE INTO segments (name, sha256) VALUES (?, ?)", (name, manifest_sha256))

    def drop_segments(self, names: Sequence[str]) -> None:
        """Forget segments whose files are gone or damaged. Raises StoreError."""
        self.database.many("DELETE FROM segments WHERE name = ?", [(name,) for name in names])

    def purge_superseded(self, before_ms: int) -> int:
        """Delete some rows superseded before `before_ms`; returns how many. Raises StoreError."""
        listed = self.database.rows("SELECT rid FROM passages WHERE superseded_ms < ? LIMIT ?", (before_ms, PURGE_ROWS))
        # The mark carries no checksum: a flipped bit in it must not cost a live row.
        marked = [row[0] for row in listed]
        dead = [rid for rid in marked if not self._bits.is_live(rid)]
        if len(dead) < len(marked):
            cleared = [(rid,) for rid in set(marked).difference(dead)]
            self.database.many("UPDATE passages SET superseded_ms = NULL WHERE rid = ?", cleared)
        purged = self.database.rows(
            "DELETE FROM passages WHERE rid IN (SELECT value FROM json_each(?)) RETURNING rid, document, payload",
            (json.dumps(dead),),
        )
        self._metadata.remove(self.database, purged)
        return len(purged)

    def mend_metadata(self, rids: Sequence[int]) -> None:
        """Derive what filters see of these passages anew. Raises StoreError."""
        self._metadata.mend(self.database, rids)

    def relive(self, chunk: int, shown: NDArray[np.int64]) -> None:
        """Derive a chunk's live bits anew; `shown`: its rows that are alive in the view. Raises StoreError."""
        found = chunk_check.check(self, chunk)
        rids = found.rids(chunk)
        for rid in np.setdiff1d(rids, shown):
            self._lives(int(rid))
        for rid in np.setdiff1d(shown, rids):
            self._dies(int(rid))
        self._bits.rewrite(chunk, live_bits.packed(rids % live_bits.CHUNK_ROWS))
        self._rewrite = True

    def recount(self) -> None:
        """Derive the digest and the number of documents anew, with this transaction. Reads every head."""
        self._recount = True

    def rewrite_state(self) -> None:
        """Store the applied set and the state record again, as this writer knows them. Raises StoreError."""
        recount.rewrite_applied(self.database, self._applied)
        self._rewrite = True

    def reindex(self) -> None:
        """Build the index of names anew from the table. Raises StoreError."""
        self.database.rows("REINDEX passages")

    def drop_ops(self, gtids: Sequence[Gtid]) -> None:
        """Delete those of these operations that fail their checksum. Raises StoreError."""
        for gtid in gtids:
            if self.op(gtid) is None:
                key = (schema.to_sql(gtid.source), schema.to_sql(gtid.seq))
                self.database.rows("DELETE FROM ops WHERE src = ? AND seq = ?", key)

    def _stored_head(self, document_id: str) -> HeadRow | None:
        """The head, or None when it is damaged too: a good one is about to take its place."""
        if document_id not in self._heads:
            try:
                self._heads[document_id] = super().head(document_id)
            except DamagedRowError:
                self._lost_heads.add(document_id)
                return None
        return self._heads[document_id]

    def _insert(self, row: PassageRow) -> int | None:
        """The rid of a row that was added or took another's place; None when what is there stays."""
        checksum = schema.passage_sum(row.document_id, row.ordinal, row.version, row.vector, row.payload)
        key = (row.document_id, row.ordinal, *_stored(row.version))
        insert = (
            "INSERT OR IGNORE INTO passages (document, ordinal, hlc, src, vec, payload, sum)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)"
        )
        self.database.rows(insert, (*key, row.vector, row.payload, checksum))
        if self.database.changed():
            return self.database.last_rowid()
        name = RowName(row.document_id, row.ordinal, row.version)
        rid = self.rid_of(name)
        assert rid is not None, "a row is ignored only when its key is there"
        # By rid, so that the names come from the table: they may be what is damaged.
        ((_, held),) = self.table_rows(rid, rid)
        if held == row:
            return None
        if isinstance(held, RowName) or _name_of(held) != name:
            if held != name:
                self.reindex()  # SQLite finds index entries by what the table says
        elif _sum_of(held) > checksum:
            return None
        else:
            self._metadata.remove(self.database, [(rid, row.document_id, held.payload)])
        self._dies(rid)
        self.database.rows("DELETE FROM passages WHERE rid = ?", (rid,))
        self.database.rows(insert, (*key, row.vector, row.payload, checksum))
        return self.database.last_rowid()

    def _next_state(self) -> ReplicaState:
        """The state after this transaction; the live bits are changed on the way. Raises StoreError."""
        before = self._state
        if self._recount:
            sums = recount.sums(self)
            self._digest, self._documents = sums.digest - before.digest, sums.documents - before.documents
        rows = before.rows + self._bits.change((*self._born, *self._unborn), self._dead)
        return replace(
            before,
            digest=(before.digest + self._digest) % DIGEST_MODULUS,
            documents=before.documents + self._documents,
            rows=live_bits.read(self.database)[0].count if self._rewrite or self._bits.rebuilt else rows,
            hlc_max=self._hlc_max,
            applied=self._applied_staged.digest(),
        )

    def _dies(self, rid: int) -> None:
        self._unborn.discard(rid)
        if self._born.pop(rid, None) is None:
            self._dead.add(rid)

    def _lives(self, rid: int) -> None:
        if rid in self._inserted:
            self._born[rid] = self._inserted[rid]
            return
        row = self.database.first(
            "SELECT document, ordinal, hlc, src, vec, payload, sum FROM passages WHERE rid = ?", (rid,)
        )
        if row is None:  # it was listed in this transaction
            raise StoreCorruptError(f"{self.database.path}: row {rid} of passages is not where its rid belongs")
        passage = passage_of(row)
        if isinstance(passage, RowName):
            self._damaged.append(passage)
            self._unborn.add(rid)
        else:
            self._born[rid] = passage

    def _count(self, old: HeadRow | None, new: HeadRow) -> None:
        before = 0 if old is None else schema.head_digest(old)
        self._digest += schema.head_digest(new) - before
        self._documents += int(new.passages > 0) - int(old is not None and old.passages > 0)


def _name_of(row: PassageRow) -> RowName:
    return RowName(row.document_id, row.ordinal, row.version)


def _sum_of(row: PassageRow) -> bytes:
    return schema.passage_sum(row.document_id, row.ordinal, row.version, row.vector, row.payload)


def _stored(version: Version) -> tuple[int, int]:
    return schema.to_sql(version.hlc), schema.to_sql(version.source)
