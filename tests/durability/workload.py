"""A replica at work: writes, updates, deletes, flushes, merges, checkpoints, purges and codecs, by a seed.

It knows what was issued and what was acknowledged at any instant, so that an image of its disk can be judged.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from services.quorum.gtid import GtidSet
from services.quorum.rows import WriteBatch
from services.quorum.status import ReplicaStatus
from services.runtime.config import ShardConfig
from services.shard import sealing
from services.shard.codecs import CodecFacts, CodecRecord, CodecStore, family
from services.shard.engine import Engine, Hooks
from tests.unit.shard_rows import DIM, FixedClock, batch, config

EPOCH = 1
REPLICA = "r1"
CODECS = "codecs/docs"
FACTORY = "IVF4,PQ4x4fs"
DOCUMENTS = 140
"""Different names; writes beyond the first of a name are updates and deletes."""
WAIT_S = 60.0


def small() -> ShardConfig:
    """Thresholds at which a few writes are a flush, and a few flushes a merge."""
    return replace(config(), delta_rows_flush=60, train_rows_min=120, superseded_keep_ms=1_000)


@dataclass(frozen=True, slots=True)
class Known:
    """What had been issued and acknowledged at one instant."""

    issued: tuple[WriteBatch, ...]
    acknowledged: frozenset[int]
    """Sequence numbers of batches."""
    codec: CodecRecord | None
    """The greatest one taken."""

    def passages(self, applied: GtidSet) -> dict[str, tuple[int, int]]:
        """Of each live document: the batch that wrote it and how many passages it has, after the `applied` ones."""
        found: dict[str, tuple[int, int]] = {}
        for entry in self.issued:  # in the order of their versions
            if entry.gtid in applied:
                found |= {head.document_id: (entry.gtid.seq, head.passages) for head in entry.heads}
        return {document_id: entry for document_id, entry in found.items() if entry[1]}


class Workload:
    """Drives an engine in `root`. `label` says what it is doing, for the names of the points."""

    def __init__(self, root: Path, seed: int, reached: Callable[[str], None] = lambda _: None) -> None:
        self.root = root
        self.random = random.Random(seed)
        self.clock = FixedClock()
        self.label = "open"
        self.fatal: list[str] = []
        self._reached = reached
        self._issued: list[WriteBatch] = []
        self._acknowledged: set[int] = set()
        self._codec: CodecRecord | None = None
        self._next = 1

    def open(self, since: Known | None = None) -> None:
        """Open what is in `root`, of which `since` is known."""
        if since is not None:
            # Until it is open, which of them were applied is not known.
            self._issued, self._acknowledged = list(since.issued), set(since.acknowledged)
        self.engine = open_engine(self.root, self.clock, self.fatal.append)
        self.codecs = open_codecs(self.root)
        if since is not None:
            self._issued = [entry for entry in since.issued if entry.gtid in self.engine.view.applied]
            self._codec = self.codecs.record()
            self._next = max((entry.gtid.seq for entry in since.issued), default=0) + 2  # the judge wrote one, too

    def known(self) -> Known:
        """Everything acknowledged up to now; may be called from any thread."""
        # Acknowledged first: a batch is issued before it is acknowledged.
        acknowledged = frozenset(self._acknowledged)
        return Known(tuple(self._issued), acknowledged, self._codec)

    @contextmanager
    def doing(self, label: str) -> Iterator[None]:
        before, self.label = self.label, label
        try:
            yield
            self._reached("done")
        finally:
            self.label = before

    def run(self, rounds: int) -> None:
        """Everything, `rounds` times."""
        for number in range(rounds):
            self.write(3)
            if number % 2:
                self.seal_beside_writes()
            else:
                self.seal()
            self.write(1)
            if number % 2:
                self.checkpoint()
                self.write(1)
            if number % 3 == 1:
                self.purge()
            if number % 2 == 0:
                self.take_codec()

    def write(self, groups: int) -> None:
        """Groups of batches that arrive together: new documents, new versions, deletes."""
        with self.doing("write"):
            for _ in range(groups):
                self._write_group()
                self._reached("acknowledged")

    def _write_group(self) -> None:
        entries = [self._batch() for _ in range(self.random.randint(1, 3))]
        futures = [self.engine.write(entry, EPOCH) for entry in entries]
        for entry, future in zip(entries, futures, strict=True):
            assert future is not None, "the queue has room"
            assert future.result(WAIT_S).status is ReplicaStatus.OK
            self._acknowledged.add(entry.gtid.seq)

    def seal(self) -> None:
        """Flush and merge until nothing is due."""
        while (due := sealing.due(self.engine.view, self.engine.config)) is not None:
            with self.doing(_kind(due)):
                sealing.build_and_publish(self.engine, due)

    def seal_beside_writes(self) -> None:
        """The same while writes go on; what they do then counts as part of it."""
        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(self.seal)
            self._write_group()
            future.result()

    def checkpoint(self) -> None:
        with self.doing("checkpoint"):
            self.engine.checkpoint()

    def purge(self) -> None:
        with self.doing("purge"):
            self.clock.now_ms += 2_000
            while self.engine.purge().result(WAIT_S):
                continue

    def take_codec(self) -> None:
        with self.doing("codec"):
            generation = (self._codec.generation if self._codec else 0) + 1
            data = self.random.randbytes(2_000)
            record = CodecRecord(generation, hashlib.sha256(data).hexdigest(), FACTORY, 100, 100)
            assert self.codecs.offer(record, data)
            self._codec = record
            self.codecs.retain(())

    def close(self) -> None:
        with self.doing("close"):
            self.engine.close()

    def _batch(self) -> WriteBatch:
        names = self.random.sample(range(DOCUMENTS), self.random.randint(1, 12))
        counts = [0 if self.random.random() < 0.15 else self.random.randint(1, 6) for _ in names]
        entry = batch(self._next, [(f"d{name}", n) for name, n in zip(names, counts, strict=True)])
        self._next += 1
        self._issued.append(entry)
        return entry


def _kind(due: sealing.Sealing) -> str:
    if not due.replaced:
        return "flush"
    return "retrain" if due.trains else "merge"


def open_engine(
    root: Path, clock: FixedClock, fatal: Callable[[str], None], settings: ShardConfig | None = None
) -> Engine:
    (root / REPLICA).mkdir(exist_ok=True)
    return Engine(root / REPLICA, REPLICA, EPOCH, DIM, settings or small(), clock, Hooks(fatal=fatal))


def open_codecs(root: Path) -> CodecStore:
    """A store that does not look inside its codecs."""
    return CodecStore(root / CODECS, "docs", family(FACTORY), DIM, inspect=lambda data: CodecFacts(FACTORY, DIM, 0))
