"""One replica: SQLite as truth, the protocol core, and the view that searches use.

All changes happen in the writer thread, in this order: transaction with rows, operations and applied set; COMMIT with
fsync; the core's set and the next view published; answers. So whatever was acknowledged is durable and is
found by the next search, and a view and its applied set always describe the same commit.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, TypeVar

from observability.logs import logger
from services.quorum.replica import ReplicaCore, ReplicaLimits
from services.quorum.rows import PassageRow, PullBundle, WriteBatch
from services.quorum.status import ReplicaStatus
from services.runtime.clock import Clock
from services.runtime.config import LexicalConfig, MetadataKind, ShardConfig
from services.shard import files, heap, opening
from services.shard.codecs import Codec
from services.shard.damage import DamagedRowError, DamageLedger, RowName
from services.shard.faiss_index import DEFAULT_KIND, Kind
from services.shard.filtering import Filters
from services.shard.lexical_ahead import TermsAhead
from services.shard.lexical_search import Lexical, lexical_of
from services.shard.loading import load_view, remove_strays
from services.shard.metadata_index import MetadataIndex
from services.shard.readers import Readers
from services.shard.replica_state import read_epoch
from services.shard.rows_reader import RowsReader
from services.shard.rows_writer import RowsWriter
from services.shard.segment import Segment
from services.shard.store import Database, StoreCorruptError, StoreError, StoreFullError, StoreIOError
from services.shard.view import Change, View
from services.shard.writer import PendingWrite, Writer, WriteReply

DATABASE_FILE = "replica.db"
SEGMENTS_DIR = "segments"
T = TypeVar("T")
_LOG = logger("shard")


class CodecSource(Protocol):
    """Where the collection's shared codec is found."""

    def current(self) -> Codec | None:
        """The newest one; None while there is none."""


class ReplicaFailedError(Exception):
    """The replica cannot serve; the message says why."""


@dataclass(frozen=True, slots=True)
class Hooks:
    """Whom the engine tells, from its own threads."""

    published: Callable[[], None] = lambda: None
    """A new view is visible."""
    damaged: Callable[[], None] = lambda: None
    """Rows were found damaged."""
    fatal: Callable[[str], None] = files.exit_process
    """The disk failed."""


class Engine:
    """An open replica. `view` may be read from any thread; changes go through `write`, `merge` and `seal`."""

    def __init__(
        self,
        directory: Path,
        replica_id: str,
        epoch: int,
        dim: int,
        config: ShardConfig,
        clock: Clock,
        hooks: Hooks | None = None,
        metadata: Mapping[str, MetadataKind] | None = None,
        lexical: Lexical | None = None,
        codecs: CodecSource | None = None,
        kind: Kind = DEFAULT_KIND,
        *,
        frozen: bool = False,
    ) -> None:
        """Open or create the database in `directory` and rebuild the view. `metadata`: what filters may name;
        `lexical`: how words are searched, by default as in a collection that says nothing. `codecs`: what segments are
        encoded with; None: the replica trains for itself, codecs of this `kind`. `epoch`, `frozen`: of the record that
        was read; what is stored counts when it is not older.

        Raises StoreError, DamagedRowError.
        """
        self.directory = directory
        self.replica_id = replica_id
        self.dim = dim
        self.config = config
        self.segments_dir = directory / SEGMENTS_DIR
        self.hooks = hooks or Hooks()
        self.clock = clock
        self.codecs = codecs
        self.kind = kind
        self._database = Database(directory / DATABASE_FILE, writable=True)
        repaired = opening.prepare(self._database, replica_id)
        self.filters = Filters(MetadataIndex(metadata or {}))
        self.lexical = lexical or lexical_of(LexicalConfig())
        self._terms = TermsAhead(self.lexical.analyzer)
        self._rows = RowsWriter(self._database, dim, self.filters.index, self._terms)
        loaded = load_view(self._rows, self.segments_dir, dim, self.lexical.analyzer)
        self._view = loaded.view
        heap.give_back()
        self.ledger = DamageLedger(replica_id, loaded.damaged_rows, len(loaded.damaged_segments))
        for reason in repaired:
            self.ledger.add_repaired(f"derived anew from the rows: {reason}")
        limits = ReplicaLimits(write_age_ms=config.write_age_ms_max, clock_skew_ms=config.clock_skew_ms_max)
        stored, stored_frozen = read_epoch(self._database)
        self.core = ReplicaCore(
            replica_id,
            max(epoch, stored),
            loaded.view.applied,
            loaded.view.hlc_max,
            limits,
            frozen=stored_frozen if stored >= epoch else frozen,
        )
        self._read_only = ""
        self._failure = ""
        self.readers = Readers(directory / DATABASE_FILE, kept=8)
        if loaded.damaged_segments:
            self._forget_segments(loaded.damaged_segments)
        remove_strays(self.segments_dir, frozenset(part.segment.name for part in loaded.view.parts))
        self._writer = Writer(
            replica_id[:8],
            self._commit,
            clock,
            rows_max=config.group_commit_rows,
            bytes_max=config.group_commit_bytes,
            queue_max=config.write_queue_max,
        )

    @property
    def database_path(self) -> Path:
        return self.directory / DATABASE_FILE

    @property
    def view(self) -> View:
        """The newest committed state."""
        return self._view

    @property
    def read_only(self) -> str:
        """Why writes are refused; empty when they are not."""
        return self._read_only

    @property
    def failure(self) -> str:
        """Why the replica cannot serve; empty when it can."""
        return self._failure

    @property
    def damaged(self) -> frozenset[RowName]:
        """Live rows known to fail their checksum and not yet repaired."""
        return self.ledger.rows

    def analyse(self, rows: Iterable[PassageRow]) -> None:
        """Find the terms of rows before they are queued, so that the writer thread need not."""
        self._terms.prepare(row.payload for row in rows)

    def write(self, batch: WriteBatch, epoch: int) -> Future[WriteReply] | None:
        """Queue a validated batch; None when the queue is full."""
        return self._writer.write(batch, epoch)

    def await_writer(self, wait_s: float) -> bool:
        """Wait until nothing is being written, `wait_s` seconds at most; whether that is so."""
        return self._writer.idle.wait(wait_s)

    def merge(self, bundle: PullBundle, *, mending: bool = False) -> Future[None]:
        """Merge a peer's state. The future raises StoreFullError, ReplicaFailedError."""
        return self._writer.run(lambda: self._merge(bundle, mending=mending))

    def fence(self, epoch: int) -> Future[ReplicaStatus]:
        """Freeze at `epoch`, durably, behind the writes that were queued before. The future raises StoreError."""
        return self._writer.run(lambda: self._moved(lambda: self.core.fence(epoch, self._rows)))

    def learn(self, epoch: int, frozen: bool) -> Future[bool]:
        """Take over the epoch of a record that was read, durably; False if it is not newer. Raises as `fence` does."""
        return self._writer.run(lambda: self._moved(lambda: self.core.learn(epoch, frozen, self._rows)))

    def seal(self, segment: Segment, manifest_sha256: str, replaced: Sequence[str]) -> Future[None]:
        """Publish a built segment in place of those named and of its rows in the delta."""
        return self._writer.run(lambda: self._seal(segment, manifest_sha256, replaced))

    def purge(self) -> Future[int]:
        """Delete some rows superseded long ago; the result is how many."""
        return self._writer.run(self._purge)

    def mend_metadata(self, rids: Sequence[int]) -> Future[None]:
        """Derive anew what filters see of these passages: the index was found wrong about them."""
        return self._writer.run(lambda: self._mend_metadata(rids))

    def maintain(self, work: Callable[[RowsWriter], None]) -> Future[None]:
        """Run `work` in a transaction of its own and publish what it changed. The future raises StoreError."""
        return self._writer.run(lambda: self._transaction(lambda: work(self._rows)))

    def recheck(self) -> Future[None]:
        """Forget noted rows that are not damaged, or not live, after all."""
        return self._writer.run(self._recheck)

    def replace_part(self, name: str, made: Callable[[View], View]) -> Future[None]:
        """Forget the segment `name` and publish what `made` makes of the newest view. The future raises StoreError."""
        return self._writer.run(lambda: self._replace_part(name, made))

    def probe(self) -> Future[None]:
        """See whether a read-only replica can write again."""
        return self._writer.run(self._probe)

    def checkpoint(self) -> None:
        """Move committed pages into the database file, from the calling thread. Raises StoreError."""
        database = Database(self.database_path, writable=True)
        try:
            database.checkpoint()
        finally:
            database.close()

    def log_bytes(self) -> int:
        """Size of the write-ahead log."""
        path = self.directory / f"{DATABASE_FILE}-wal"
        return path.stat().st_size if path.exists() else 0

    def note_damage(self, names: Sequence[RowName]) -> None:
        """Remember damaged rows until they are repaired or superseded."""
        self.ledger.add_rows(names)
        self.hooks.damaged()

    def note_failure(self, error: Exception) -> None:
        """Draw the consequence of a failed read or write, in whichever thread it was met."""
        if isinstance(error, StoreIOError):
            self.hooks.fatal(str(error))
        if isinstance(error, StoreCorruptError):
            self._fail(str(error))

    def _fail(self, reason: str) -> None:
        if not self._failure:
            self._failure = reason
            _LOG.error("replica failed", replica=self.replica_id, reason=reason)

    def close(self) -> None:
        """Finish queued writes and close the files."""
        self._writer.close()
        self.readers.close()
        self._database.close()

    # In the writer thread from here on.

    def _commit(self, group: Sequence[PendingWrite]) -> None:
        began = self.clock.monotonic_s()
        try:
            statuses = self._apply(group)
            replies = [
                WriteReply(status, self.core.hlc_max, self._why(pending, status))
                for pending, status in zip(group, statuses, strict=True)
            ]
        except StoreFullError as error:
            self._turn_read_only(str(error))
            replies = [WriteReply(ReplicaStatus.READ_ONLY, self.core.hlc_max, self._read_only)] * len(group)
        except DamagedRowError as error:
            self.note_damage(error.names)
            replies = [WriteReply(ReplicaStatus.FAILED, self.core.hlc_max, str(error))] * len(group)
        except (StoreError, ReplicaFailedError) as error:
            replies = [WriteReply(ReplicaStatus.FAILED, self.core.hlc_max, str(error))] * len(group)
        except Exception as error:
            # A defect; the callers learn that nothing was promised, and the thread goes on.
            _LOG.exception("write group failed", error, replica=self.replica_id)
            for pending in group:
                pending.future.set_exception(error)
            return
        commit_us = int((self.clock.monotonic_s() - began) * 1e6)
        for pending, reply in zip(group, replies, strict=True):
            wait_us = int((began - pending.queued_s) * 1e6)
            pending.future.set_result(replace(reply, queue_wait_us=wait_us, commit_us=commit_us))

    def _why(self, pending: PendingWrite, status: ReplicaStatus) -> str:
        if status is ReplicaStatus.FAILED:
            return "a document of the batch has a head that fails its checksum; it is being repaired"
        if status is not ReplicaStatus.INVALID:
            return ""
        if pending.batch.gtid in self.core.applied:
            return "gtid: already used for a batch of other content"
        return "version: already used for other content of a document; a retry repeats the very same write"

    def _apply(self, group: Sequence[PendingWrite]) -> list[ReplicaStatus]:
        statuses: list[ReplicaStatus] = []

        def work() -> None:
            batches = [(pending.batch, pending.epoch) for pending in group]
            statuses.extend(self.core.apply(batches, self.clock.wall_ms(), self._rows))

        self._transaction(work)
        return statuses

    def _merge(self, bundle: PullBundle, *, mending: bool) -> None:
        try:
            self._transaction(lambda: self._merge_rows(bundle), mending=mending)
            if mending:
                self.ledger.ops_mended(bundle.covers)
        except StoreFullError as error:
            self._turn_read_only(str(error))
            raise
        except DamagedRowError as error:
            self.note_damage(error.names)
            raise

    def _merge_rows(self, bundle: PullBundle) -> None:
        self.core.merge(bundle, self._rows)

    def _moved(self, move: Callable[[], T]) -> T:
        answers: list[T] = []
        self._transaction(lambda: answers.append(move()))
        return answers[0]

    def _transaction(self, work: Callable[[], None], *, mending: bool = False) -> None:
        """`work` and its consequences as one commit and one view. Raises StoreError, DamagedRowError."""
        if self._failure:
            raise ReplicaFailedError(self._failure)
        self._check_space()
        try:
            self._rows.begin(self.clock.wall_ms(), mending=mending)
            work()
            change = self._rows.commit()
        except BaseException as error:
            self._abort(error)
            raise
        self._publish(change)

    def _publish(self, change: Change) -> None:
        self.core.committed()
        self._view = self._view.committed(self.core.applied, self.core.hlc_max, change)
        if self._read_only:
            _LOG.info("replica writable again", replica=self.replica_id)
            self._read_only = ""
        if change.damaged:
            self.note_damage(change.damaged)
        self._recheck()
        self.hooks.published()

    def _abort(self, error: BaseException) -> None:
        self.core.aborted()
        try:
            self._rows.rollback()
        except StoreError as second:
            self.hooks.fatal(f"rollback failed: {second}")
        if isinstance(error, StoreError):
            self.note_failure(error)

    def _seal(self, segment: Segment, manifest_sha256: str, replaced: Sequence[str]) -> None:
        try:
            self._check_space()
            self._rows.begin(self.clock.wall_ms())
            self._rows.put_segment(segment.name, manifest_sha256, replaced)
            self._rows.commit()
        except BaseException as error:
            self._abort(error)
            raise
        self._view = self._view.sealed(segment, frozenset(replaced))
        for name in replaced:
            files.remove_tree(self.segments_dir / name)
        heap.shrink_arena()
        self.hooks.published()

    def _recheck(self) -> None:
        self.ledger.keep_rows(RowsReader(self._database).is_damaged)

    def _replace_part(self, name: str, made: Callable[[View], View]) -> None:
        self._forget_segments([name])
        self._view = made(self._view)
        self.ledger.part_replaced(name)
        files.remove_tree(self.segments_dir / name)
        self.hooks.published()

    def _forget_segments(self, names: Sequence[str]) -> None:
        self._rows.begin(self.clock.wall_ms())
        try:
            self._rows.drop_segments(names)
            self._rows.commit()
        except StoreFullError as error:
            # They are found damaged again at the next start; nothing else depends on the row.
            self._abort(error)

    def _purge(self) -> int:
        before_ms = self.clock.wall_ms() - self.config.superseded_keep_ms
        try:
            self._rows.begin(self.clock.wall_ms())
            purged = self._rows.purge_superseded(before_ms)
            self._rows.commit()
        except BaseException as error:
            self._abort(error)
            raise
        return purged

    def _mend_metadata(self, rids: Sequence[int]) -> None:
        try:
            self._rows.begin(self.clock.wall_ms())
            self._rows.mend_metadata(rids)
            self._rows.commit()
        except BaseException as error:
            self._abort(error)
            raise
        finally:
            self.filters.cache.clear()
        _LOG.warning("metadata index mended", replica=self.replica_id, rows=len(rids))

    def _probe(self) -> None:
        try:
            self._transaction(self._rows.put_probe)
        except StoreFullError as error:
            self._turn_read_only(str(error))

    def _check_space(self) -> None:
        free = shutil.disk_usage(self.directory).free
        if free < self.config.disk_reserve_bytes:
            raise StoreFullError(f"{free} bytes free, shard.disk_reserve_bytes is {self.config.disk_reserve_bytes}")

    def _turn_read_only(self, reason: str) -> None:
        if not self._read_only:
            _LOG.warning("replica read-only", replica=self.replica_id, reason=reason)
        self._read_only = reason
