"""Training codecs: one task per node that looks now and then whether it owns a collection's codec and one is due.

Rows are sampled from all shards, trained on in one thread of lowest priority, and offered to this node's store; the
other nodes fetch the result (codec_exchange). A node that dies half way leaves nothing behind: the next owner begins
anew when this one has been silent for a while.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from observability.logs import logger
from services.runtime.clock import Clock
from services.shard import codec_policy as policy
from services.shard import faiss_index
from services.shard.background import in_background
from services.shard.codec_policy import Basis, Fit
from services.shard.codec_sources import CollectionSource, SampleError
from services.shard.codecs import CodecRecord, CodecRefusedError, CodecStore
from services.shard.faiss_index import DEFAULT_KIND, Kind

FIT_ROWS = 2_048
"""Rows held out of training, and drawn later to see whether the codec still fits them."""
FIT_EVERY_ROUNDS = 30
ROWS_PER_COPY = 8_192
_LOG = logger("shard")


@dataclass(frozen=True, slots=True)
class Trained:
    """A new codec before it has a generation."""

    factory: str
    data: bytes
    rows: int
    fit: Fit


@dataclass(frozen=True, slots=True)
class Subject:
    """A collection whose codec this node may train."""

    source: CollectionSource
    store: CodecStore
    order: Sequence[str]
    """Nodes that host the collection, in the mesh file's order."""
    kind: Kind = DEFAULT_KIND


def train(sample: NDArray[np.float16], kind: Kind = DEFAULT_KIND, lists: int | None = None) -> Trained:
    """Train on float16 rows (n, dim) in the calling thread; some are held out to measure the fit. Deterministic.

    `lists`: wanted, if the rows suffice for so many; None: as many as suit the sample itself. Raises SampleError when
    the kind needs more rows.
    """
    order = np.random.default_rng(faiss_index.SEED).permutation(len(sample))
    held_out, used = np.split(order, [min(FIT_ROWS, len(order) // 8)])
    rows = np.empty((len(used), sample.shape[1]), dtype=np.float32)
    for start in range(0, len(used), ROWS_PER_COPY):
        rows[start : start + ROWS_PER_COPY] = sample[used[start : start + ROWS_PER_COPY]]
    lists = faiss_index.inverted_lists(len(rows), rows.shape[1]) if lists is None else min(lists, lists_max(len(rows)))
    try:
        index = faiss_index.train(rows, 1, kind, lists)
    except ValueError as error:
        raise SampleError(str(error)) from error
    data = index.codec()
    return Trained(index.factory, data, len(rows), fit_of(data, sample[held_out]))


def record_of(trained: Trained, before: CodecRecord | None, rows: int) -> CodecRecord:
    """The next generation after `before`, trained for `rows` live rows."""
    return CodecRecord(
        generation=1 + (0 if before is None else before.generation),
        sha256=hashlib.sha256(trained.data).hexdigest(),
        factory=trained.factory,
        trained_rows=trained.rows,
        basis_rows=rows,
        error_basis=trained.fit.error,
        imbalance_basis=trained.fit.imbalance,
    )


def basis_of(record: CodecRecord) -> Basis:
    """What the codec was trained for."""
    return Basis(record.generation, record.basis_rows, Fit(record.error_basis, record.imbalance_basis))


def lists_max(rows: int) -> int:
    """The most lists, a power of two, that k-means can place with so many rows."""
    return 1 << max(0, int(rows / faiss_index.TRAIN_POINTS_PER_CENTROID_MIN).bit_length() - 1)


def fit_of(codec: bytes, rows: NDArray[np.float16]) -> Fit:
    """How well the codec fits rows float16 (n, dim)."""
    return Fit(*faiss_index.from_codec(codec).fit(rows.astype(np.float32)))


class CodecTraining:
    """The rounds of one node. Lives in one event loop; training itself runs in a thread."""

    def __init__(
        self,
        me: str,
        subjects: Sequence[Subject],
        heard_s: Mapping[str, float],
        clock: Clock,
        *,
        rows_min: int,
        silent_s: float,
        interval_s: float,
        trained: Callable[[str], None],
    ) -> None:
        """`heard_s`: of the codec exchange. `trained` is told the collection when a new codec is in its store."""
        self._me = me
        self._subjects = subjects
        self._heard_s = heard_s
        self._clock = clock
        self._rows_min = rows_min
        self._silent_s = silent_s
        self._interval_s = interval_s
        self._trained = trained
        self._rounds = 0
        self.failures: dict[str, str] = {}
        """Why the last attempt for a collection failed, until one succeeds."""

    def follow(self, subjects: Sequence[Subject]) -> None:
        """Where the rows are has changed."""
        self._subjects = subjects

    async def run(self) -> None:
        """Look and train until cancelled; one collection at a time."""
        while True:
            await asyncio.sleep(self._interval_s)
            for subject in self._subjects:
                await self.attempt(subject)
            self._rounds += 1

    async def attempt(self, subject: Subject) -> None:
        """One look; an error is logged once, kept in `failures`, and left to the next round."""
        collection = subject.source.collection
        try:
            await self.look(subject)
            self.failures.pop(collection, None)
        except (SampleError, CodecRefusedError, OSError) as error:
            if self.failures.get(collection) != str(error):
                _LOG.warning("codec not trained; it is tried again", collection=collection, reason=str(error))
            self.failures[collection] = str(error)
        except Exception as error:
            # A defect here must not end the task: a greater codec may still come from a peer.
            if collection not in self.failures:
                _LOG.exception("codec training failed", error, collection=collection)
            self.failures[collection] = repr(error)

    def owns(self, subject: Subject) -> bool:
        """Whether this node trains the collection's codec now."""
        now_s = self._clock.monotonic_s()
        return policy.owner(subject.order, self._heard_s, self._me, now_s, self._silent_s) == self._me

    async def look(self, subject: Subject) -> bool:
        """Train if this node should; whether it did. Raises SampleError, CodecRefusedError, OSError."""
        if not self.owns(subject):
            return False
        live = await subject.source.rows_live()
        rows = sum(live.values())
        record = subject.store.record()
        basis = None if record is None else basis_of(record)
        due = self._rounds % FIT_EVERY_ROUNDS == FIT_EVERY_ROUNDS - 1
        fit = await self._fit(subject, live) if basis and due and rows >= self._rows_min else None
        reason = policy.reason_to_train(basis, rows, self._rows_min, fit)
        if not reason:
            return False
        collection = subject.source.collection
        _LOG.info("codec training begins", collection=collection, reason=reason, rows=rows)
        lists = faiss_index.inverted_lists(max(live.values()), subject.source.dim)
        sample = await subject.source.sample(live, policy.training_rows(rows, lists, subject.source.dim))
        if not len(sample):
            raise SampleError(f"no rows of {collection!r} could be read")
        trained = await in_background("codec-training", lambda: train(sample, subject.kind, lists))
        if subject.store.record() != record:
            return False  # a greater one came while this one was trained
        await asyncio.to_thread(subject.store.offer, record_of(trained, record, rows), trained.data)
        self._trained(collection)
        return True

    async def _fit(self, subject: Subject, live: Mapping[int, int]) -> Fit | None:
        codec = await asyncio.to_thread(subject.store.current)
        if codec is None:
            return None
        rows = await subject.source.sample(live, FIT_ROWS)
        return await in_background("codec-fit", lambda: fit_of(codec.data, rows)) if len(rows) else None
