"""A complete check of one replica, piece by piece in idle time: every row, what is derived from rows, every file.

Searches verify what they serve; the scrub finds what nobody asked for, while peers still have it. It reads in short
transactions beside running traffic, so each piece is held against one committed state. What it finds goes to the
replica's `DamageLedger` and is made good at once where this replica can: rows by its peers, derived data from the rows,
a segment by dropping it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from observability.logs import logger
from services.quorum.gtid import Gtid, GtidSet
from services.quorum.rows import HeadRow, Op
from services.shard import chunk_check, live_bits, mending, schema
from services.shard.chunk_check import PAUSE_ROWS
from services.shard.damage import DamagedRowError, RowName
from services.shard.engine import Engine
from services.shard.live_bits import CHUNK_ROWS
from services.shard.metadata_index import Stored
from services.shard.replica_state import read_state
from services.shard.rows_reader import RowsReader
from services.shard.rows_writer import RowsWriter
from services.shard.segment import MANIFEST_FILE, Segment
from services.shard.store import Database, StoreCorruptError
from services.shard.view import DIGEST_MODULUS

SHARE = 0.05
"""Of one core, that the check of one replica takes; a node has several."""
ROWS_PER_READ = 32
READS_PER_PIECE = 256
LOG_BYTES_MAX = 256 * 1024 * 1024
"""The digest is of one committed state, and while that is read the write-ahead log only grows."""
_QUICK_CHECK = "PRAGMA quick_check({})"
_TABLES = "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%' ORDER BY name"
FILE_BLOCK = 16 * 1024 * 1024
_LOG = logger("shard")


@dataclass(frozen=True, slots=True)
class ScrubReading:
    """How far the check is."""

    age_ms: int | None
    """Since the last complete one ended; None before the first."""
    damage_found: int
    """Rows and files found damaged since the start, by whomever."""
    pieces: int
    """Pieces of the present check done so far."""


@dataclass(slots=True)
class _Tally:
    """Sums over heads and operations read so far."""

    digest: int = 0
    documents: int = 0
    damaged_heads: int = 0
    found: dict[int, list[tuple[int, int]]] = field(default_factory=dict)
    """Spans of batches whose operation passes its checksum, by source."""
    unsound: list[Gtid] = field(default_factory=list)

    def add_heads(self, heads: Sequence[HeadRow | RowName]) -> None:
        for head in heads:
            if isinstance(head, RowName):
                self.damaged_heads += 1
            else:
                self.digest += schema.head_digest(head)
                self.documents += head.passages > 0

    def add_ops(self, ops: Sequence[Op | Gtid]) -> Gtid:
        """Returns the last of them."""
        for op in ops:
            if isinstance(op, Gtid):
                self.unsound.append(op)
                continue
            self.digest += schema.op_digest(op)
            spans = self.found.setdefault(op.gtid.source, [])
            if spans and spans[-1][1] + 1 == op.gtid.seq:
                spans[-1] = (spans[-1][0], op.gtid.seq)
            else:
                spans.append((op.gtid.seq, op.gtid.seq))
        last = ops[-1]
        return last if isinstance(last, Gtid) else last.gtid


class Scrub:
    """The check of one replica. `step` and `run_once` belong to one thread."""

    def __init__(self, engine: Engine, pause: Callable[[], None] = lambda: None) -> None:
        """`pause` is called within a piece, every few milliseconds of work where that is possible."""
        self._engine = engine
        self._pause = pause
        self._clock = engine.clock
        self._pieces: Generator[None, None, None] | None = None
        self._done = 0
        self._next_s = 0.0
        self._ended_s: float | None = None

    def reading(self) -> ScrubReading:
        """For whoever reports; from any thread."""
        ended_s = self._ended_s
        age_ms = None if ended_s is None else max(0, int((self._clock.monotonic_s() - ended_s) * 1_000))
        return ScrubReading(age_ms, self._engine.ledger.found, self._done)

    def step(self) -> bool:
        """Do the next piece if one is due; whether it was. A piece is some tenths of a second at most, SQLite's own
        check of its pages apart. Raises StoreError, OSError; the check then begins anew.
        """
        if self._pieces is None:
            if not self._due():
                return False
            self._pieces, self._done = self._all(), 0
        began_s = self._clock.monotonic_s()
        if began_s < self._next_s:
            return False
        self._piece(self._pieces)
        now_s = self._clock.monotonic_s()
        self._next_s = now_s + (now_s - began_s) / SHARE
        return True

    def _piece(self, pieces: Iterator[None]) -> None:
        try:
            next(pieces)
            self._done += 1
        except StopIteration:
            self._pieces = None
            self._ended_s = self._clock.monotonic_s()
        except BaseException:
            self._pieces = None
            raise

    def discard_damaged(self) -> None:
        """Drop the parts of the view that searches or a check found damaged, before anything is built from them.
        Raises StoreError."""
        for name in self._engine.ledger.parts:
            mending.discard_part(self._engine, name)

    def close(self) -> None:
        """Let go of what a check that is not complete holds open."""
        if self._pieces is not None:
            self._pieces.close()
            self._pieces = None

    def _due(self) -> bool:
        if self._engine.ledger.take_doubt() or self._ended_s is None:
            return True
        return self._clock.monotonic_s() >= self._ended_s + self._engine.config.scrub_interval_s

    def run_once(self) -> None:
        """A complete check, at once. Raises StoreError, OSError."""
        self._pieces, self._done = self._all(), 0
        while self._pieces is not None:
            self._piece(self._pieces)

    def _all(self) -> Generator[None, None, None]:
        yield from self._state()
        yield from self._chunks()
        yield from self._heads_and_ops()
        yield from self._segments()
        yield from self._pages()

    def _state(self) -> Iterator[None]:
        engine = self._engine
        with engine.readers.lend() as reader, reader.database.reading():
            state, applied = read_state(reader.database), reader.intervals()
        if state is None or applied is None or applied.digest() != state.applied:
            engine.ledger.add_repaired("the stored applied set failed its checksum and was written again")
            engine.maintain(lambda rows: rows.rewrite_state()).result()
        yield

    def _chunks(self) -> Iterator[None]:
        """Every passage, the live bits of its chunk, what filters see of it."""
        engine = self._engine
        with engine.readers.lend() as reader:
            chunks = set(range(reader.rid_max() // CHUNK_ROWS + 1))
            chunks.update(row[0] for row in reader.database.rows("SELECT chunk FROM live"))
        for chunk in sorted(chunks):
            with engine.readers.lend() as reader, reader.database.reading():
                found = chunk_check.check(reader, chunk, self._pause)
                unfiltered = list(self._unfiltered(reader.database, found.rows))
            if found.unindexed:
                engine.ledger.add_repaired(
                    f"{found.unindexed} passages could not be found by name; the index is rebuilt"
                )
                engine.maintain(lambda rows: rows.reindex()).result()
            if found.damaged:
                engine.note_damage(found.damaged)
            if not found.agrees:
                engine.ledger.add_repaired(f"live bits of rids from {chunk * CHUNK_ROWS} were wrong and derived anew")
                self._relive(chunk).result()
            if unfiltered:
                engine.ledger.add_repaired(f"{len(unfiltered)} passages were missing from the metadata index")
                engine.mend_metadata(unfiltered).result()
            yield

    def _unfiltered(self, database: Database, rows: Sequence[Stored]) -> Iterator[int]:
        for start in range(0, len(rows), PAUSE_ROWS):
            yield from self._engine.filters.index.missing(database, rows[start : start + PAUSE_ROWS])
            self._pause()

    def _relive(self, chunk: int) -> Future[None]:
        first = chunk * CHUNK_ROWS

        def work(rows: RowsWriter) -> None:
            shown = self._engine.view.live_rids()
            rows.relive(chunk, shown[(shown >= first) & (shown < first + CHUNK_ROWS)])

        return self._engine.maintain(work)

    def _heads_and_ops(self) -> Iterator[None]:
        """Every head with the passages it declares, every operation, and the digest over both, in one committed
        state."""
        engine = self._engine
        tally = _Tally()
        with engine.readers.lend() as reader, reader.database.reading():
            state, applied = read_state(reader.database), reader.intervals()
            bits, _ = live_bits.read(reader.database)
            after, read = "", 0
            while heads := reader.heads_after(after, ROWS_PER_READ):
                damaged = [name for head in heads for name in _damage_of(reader, head)]
                if damaged:
                    engine.note_damage(damaged)
                tally.add_heads(heads)
                after = heads[-1].document_id
                read += 1
                if read % READS_PER_PIECE:
                    self._pause()
                    continue
                yield
                if self._log_too_large():
                    return
            last: Gtid | None = None
            while ops := reader.ops_after(last, ROWS_PER_READ):
                last = tally.add_ops(ops)
                read += 1
                if read % READS_PER_PIECE:
                    self._pause()
                    continue
                yield
                if self._log_too_large():
                    return
        if tally.unsound:
            engine.maintain(lambda rows: rows.drop_ops(tally.unsound)).result()
        missing = (applied or GtidSet.EMPTY).difference(GtidSet.from_intervals(tally.found))
        if missing:
            engine.ledger.add_ops(missing)
            engine.hooks.damaged()
        if state is None:
            return
        sound = not (tally.damaged_heads or tally.unsound or missing)
        if sound and (tally.digest % DIGEST_MODULUS, tally.documents) != (state.digest, state.documents):
            engine.ledger.add_repaired("the stored digest was not that of the rows and was derived anew")
            engine.maintain(lambda rows: rows.recount()).result()
        if bits.count != state.rows:
            engine.ledger.add_repaired("the stored number of live rows was wrong and was counted anew")
            engine.maintain(lambda rows: rows.rewrite_state()).result()

    def _log_too_large(self) -> bool:
        too_large = self._engine.log_bytes() > LOG_BYTES_MAX
        if too_large:
            _LOG.info("the digest is checked another time: too much is being written")
        return too_large

    def _segments(self) -> Iterator[None]:
        """Every file of every segment, read again from disk."""
        for part in self._engine.view.parts:
            for problem in _file_problems(part.segment):
                if part.segment.name not in {each.segment.name for each in self._engine.view.parts}:
                    break  # merged meanwhile, and its files are gone
                if problem:
                    self._engine.ledger.add_part(part.segment.name, problem)
                    break
                yield
            self.discard_damaged()

    def _pages(self) -> Iterator[None]:
        """SQLite's own structure, which no checksum of ours covers, a table at a time."""
        with self._engine.readers.lend() as reader:
            tables = [str(row[0]) for row in reader.database.rows(_TABLES)]
        for table in tables:
            with self._engine.readers.lend() as reader:
                rows = reader.database.rows(_QUICK_CHECK.format(table))
            if [tuple(row) for row in rows] != [("ok",)]:
                found = "; ".join(str(row[0]) for row in rows)
                raise StoreCorruptError(f"{self._engine.database_path}: {found}")
            yield


def _damage_of(reader: RowsReader, head: HeadRow | RowName) -> list[RowName]:
    """The head's own name when it is damaged, or those of declared passages that are not stored."""
    if isinstance(head, RowName):
        return [head]
    if reader.stored_of(head) == head.passages:
        return []
    try:
        reader.live_passages(head.document_id)
        return []
    except DamagedRowError as error:
        return list(error.names)


def _file_problems(segment: Segment) -> Iterator[str]:
    """After each block of each file "", or what is wrong with the file."""
    try:
        wanted = segment.manifest.sha256
        if (segment.directory / MANIFEST_FILE).read_bytes() != segment.manifest.to_bytes():
            yield f"{MANIFEST_FILE} differs from what was published"
        for name, sha256 in sorted(wanted.items()):
            state = hashlib.sha256()
            with (segment.directory / name).open("rb") as file:
                # What the kernel has cached may be older than what the disk holds now.
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                while block := file.read(FILE_BLOCK):
                    state.update(block)
                    yield ""
            if state.hexdigest() != sha256:
                yield f"{name} differs from its manifest"
    except OSError as error:
        yield str(error)
