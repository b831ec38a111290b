"""The shell around the batching policy: asyncio on one side, one thread that owns the model on the other.

Each request ends in exactly one way: its vectors, a refusal (queue full), a spent deadline, or cancellation.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from observability import logs
from services.embed.batching import Batch, BatchQueue, Lane, Limits
from services.embed.encoder import Encoded, Encoder
from services.runtime.clock import Clock
from services.runtime.deadline import Deadline
from services.runtime.errors import DeadlineExceeded, Internal, MeshError, ResourceExhausted, Unavailable

RETRY_MS_MIN, RETRY_MS_MAX = 50, 5_000
"""Bounds of the advice given with a refusal: never a hot loop, never a client that gives up for good."""

_BYTES_PER_TOKEN = 4
"""English prose and code in UTF-8; only ordering and padding depend on it, not results."""

_LOG = logs.logger("embed")


@dataclass(frozen=True, slots=True)
class Embedding:
    """The answer to one request; row i of `vectors` belongs to text i."""

    vectors: NDArray[np.float32]
    token_counts: tuple[int, ...]
    truncated: tuple[bool, ...]
    batch_size: int
    """Texts in the pass that served the first text."""
    queue_wait_us: int
    """From arrival to the start of the first pass that served one of the texts."""
    compute_us: int
    """Sum of the passes that served the texts."""


@dataclass(slots=True)
class _Request:
    texts: Sequence[str]
    arrived_s: float
    done: asyncio.Future[Embedding]
    vectors: NDArray[np.float32]
    token_counts: list[int]
    truncated: list[bool]
    left: int
    started_s: float | None = None
    batch_size: int = 0
    compute_us: int = 0


@dataclass(slots=True)
class Batcher:
    """Feeds the model with batches. Use from one event loop; call `close` once."""

    encoder: Encoder
    limits: Limits
    clock: Clock
    _queue: BatchQueue = field(init=False)
    _requests: dict[int, _Request] = field(default_factory=dict)
    _tickets: itertools.count[int] = field(default_factory=itertools.count)
    _thread: ThreadPoolExecutor = field(init=False)
    _pass: asyncio.Task[None] | None = None
    _text_us: float = 10_000.0
    _closed: bool = False

    def __post_init__(self) -> None:
        self._queue = BatchQueue(self.limits)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="encoder")

    @property
    def texts_waiting(self) -> int:
        """Texts queued and not yet in a pass."""
        return self._queue.texts_waiting

    async def embed(self, lane: Lane, texts: Sequence[str], deadline: Deadline) -> Embedding:
        """Embed non-empty `texts`.

        Raises ResourceExhausted with a retry time when the queue is full, DeadlineExceeded when the deadline passes
        before a pass begins, Internal when the model fails, Unavailable after `close`.
        """
        deadline.check("embedding")
        if self._closed:
            raise Unavailable("the embed service is stopping", definite=True)
        ticket = next(self._tickets)
        if not self._queue.offer(ticket, lane, [self._estimate(text) for text in texts], deadline.expires_monotonic_s):
            raise ResourceExhausted(
                f"{self.texts_waiting} of {self.limits.queue_texts_max} queue places are taken, "
                f"{len(texts)} more texts do not fit",
                retry_ms=self._retry_ms(),
            )
        request = self._requests[ticket] = _Request(
            texts=texts,
            arrived_s=self.clock.monotonic_s(),
            done=asyncio.get_running_loop().create_future(),
            vectors=np.empty((len(texts), self.encoder.dim), np.float32),
            token_counts=[0] * len(texts),
            truncated=[False] * len(texts),
            left=len(texts),
        )
        self._pump()
        try:
            return await request.done
        finally:
            # Also the way out of a cancelled call: what has not been computed yet never will be.
            self._queue.withdraw(ticket)
            self._requests.pop(ticket, None)

    async def close(self) -> None:
        """Refuse what waits, finish the pass under way, stop the thread."""
        self._closed = True
        for ticket in list(self._requests):
            if self._queue.withdraw(ticket):
                self._fail(ticket, Unavailable("the embed service is stopping", definite=True))
        if self._pass is not None:
            await self._pass
        self._thread.shutdown()

    def _pump(self) -> None:
        """Start a pass if none runs and something waits."""
        if self._pass is not None:
            return
        for ticket in self._queue.late(self.clock.monotonic_s()):
            self._fail(ticket, DeadlineExceeded("the deadline passed in the embed queue", definite=True))
        batch = self._queue.take()
        if batch is not None:
            texts = [self._requests[item.ticket].texts[item.index] for item in batch.items]
            self._pass = asyncio.create_task(self._run(batch, texts), name="encoder pass")

    async def _run(self, batch: Batch, texts: list[str]) -> None:
        started_s = self.clock.monotonic_s()
        outcome: Encoded | MeshError
        try:
            outcome = await asyncio.get_running_loop().run_in_executor(
                self._thread, self.encoder.encode, batch.lane, texts
            )
        except Exception as error:
            # Whatever the model throws belongs to these requests alone; the next pass must run.
            _LOG.exception("the model failed on a pass", error, texts=len(texts))
            outcome = Internal(f"the embedding model failed: {type(error).__name__}")
        compute_us = round((self.clock.monotonic_s() - started_s) * 1e6)
        self._text_us += 0.2 * (compute_us / len(texts) - self._text_us)
        if isinstance(outcome, MeshError):
            for ticket in {item.ticket for item in batch.items}:
                self._queue.withdraw(ticket)
                self._fail(ticket, outcome)
        else:
            self._distribute(batch, outcome, started_s, compute_us)
        self._pass = None
        self._pump()

    def _distribute(self, batch: Batch, encoded: Encoded, started_s: float, compute_us: int) -> None:
        counted: set[int] = set()
        for row, item in enumerate(batch.items):
            request = self._requests.get(item.ticket)
            if request is None:
                continue  # cancelled while the pass ran
            request.vectors[item.index] = encoded.vectors[row]
            request.token_counts[item.index] = encoded.token_counts[row]
            request.truncated[item.index] = encoded.truncated[row]
            request.left -= 1
            if request.started_s is None:
                request.started_s = started_s
            if item.index == 0:
                request.batch_size = len(batch.items)
            if item.ticket not in counted:
                counted.add(item.ticket)
                request.compute_us += compute_us
        for ticket in counted:
            request = self._requests[ticket]
            if request.left == 0 and not request.done.done():
                request.done.set_result(_embedding(request))

    def _fail(self, ticket: int, error: MeshError) -> None:
        request = self._requests.get(ticket)
        if request is not None and not request.done.done():
            request.done.set_exception(error)

    def _estimate(self, text: str) -> int:
        tokens = len(text.encode()) // _BYTES_PER_TOKEN + 2
        return min(tokens, self.encoder.max_tokens or tokens)

    def _retry_ms(self) -> int:
        """How long the texts now waiting will take."""
        return round(min(max(self.texts_waiting * self._text_us / 1_000, RETRY_MS_MIN), RETRY_MS_MAX))


def _embedding(request: _Request) -> Embedding:
    assert request.left == 0
    assert request.started_s is not None
    return Embedding(
        vectors=request.vectors,
        token_counts=tuple(request.token_counts),
        truncated=tuple(request.truncated),
        batch_size=request.batch_size,
        queue_wait_us=round((request.started_s - request.arrived_s) * 1e6),
        compute_us=request.compute_us,
    )
