"""The batcher with a model that stands still until the test lets it go."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence

import numpy as np
import pytest

from services.embed.batcher import RETRY_MS_MIN, Batcher
from services.embed.batching import Lane, Limits
from services.embed.encoder import Encoded
from services.runtime.clock import SYSTEM_CLOCK
from services.runtime.deadline import Deadline
from services.runtime.errors import DeadlineExceeded, Internal, ResourceExhausted, Unavailable


class GatedEncoder:
    """Two-dimensional vectors (length of the text, pass number); each pass waits for a permit."""

    dim = 2
    max_tokens = 8

    def __init__(self) -> None:
        self.permits = threading.Semaphore(0)
        self.began = asyncio.Queue[list[str]]()
        self.loop = asyncio.get_running_loop()
        self.passes: list[list[str]] = []

    def encode(self, lane: Lane, texts: Sequence[str]) -> Encoded:
        self.passes.append(list(texts))
        self.loop.call_soon_threadsafe(self.began.put_nowait, list(texts))
        assert self.permits.acquire(timeout=60)
        if "poison" in texts:
            raise RuntimeError("boom")
        vectors = np.array([[len(text), len(self.passes)] for text in texts], np.float32)
        return Encoded(vectors, tuple(len(text) for text in texts), tuple(len(text) > 8 for text in texts))


class ManualClock:
    now_s = 100.0

    def wall_ms(self) -> int:
        return 0

    def monotonic_s(self) -> float:
        return self.now_s


@pytest.fixture
async def encoder() -> GatedEncoder:
    return GatedEncoder()


@pytest.fixture
async def batcher(encoder: GatedEncoder) -> AsyncIterator[Batcher]:
    batcher = Batcher(encoder, Limits(4, 6), SYSTEM_CLOCK)
    yield batcher
    encoder.permits.release(1_000)
    await batcher.close()


def soon() -> Deadline:
    return Deadline.after_ms(60_000)


def ask(batcher: Batcher, *texts: str, lane: Lane = Lane.QUERY) -> asyncio.Task[object]:
    return asyncio.create_task(batcher.embed(lane, texts, soon()))


async def test_rows_come_back_in_the_order_of_the_texts(batcher: Batcher, encoder: GatedEncoder) -> None:
    encoder.permits.release(9)
    embedding = await batcher.embed(Lane.PASSAGE, ["a" * 5, "b" * 40, "c", "d" * 9, "e" * 7], soon())
    assert embedding.vectors[:, 0].tolist() == [5, 40, 1, 9, 7]
    assert embedding.token_counts == (5, 40, 1, 9, 7)
    assert embedding.truncated == (False, True, False, True, False)
    assert len(encoder.passes) == 2
    assert embedding.batch_size in (1, 4)


async def test_an_idle_model_starts_at_once_and_what_arrives_meanwhile_shares_the_next_pass(
    batcher: Batcher, encoder: GatedEncoder
) -> None:
    first = ask(batcher, "one")
    assert await encoder.began.get() == ["one"]
    rest = [ask(batcher, text) for text in ("two", "six")]
    await asyncio.sleep(0)
    encoder.permits.release(2)
    await asyncio.gather(first, *rest)
    assert encoder.passes == [["one"], ["two", "six"]]


async def test_a_full_queue_refuses_with_a_retry_time_and_keeps_serving(
    batcher: Batcher, encoder: GatedEncoder
) -> None:
    running = ask(batcher, "running")
    await encoder.began.get()
    waiting = ask(batcher, *"abcdef")
    await asyncio.sleep(0)
    with pytest.raises(ResourceExhausted) as refused:
        await batcher.embed(Lane.QUERY, ["one too many"], soon())
    assert refused.value.retry_ms >= RETRY_MS_MIN
    assert refused.value.definite
    encoder.permits.release(9)
    await asyncio.gather(running, waiting)
    assert batcher.texts_waiting == 0
    await batcher.embed(Lane.QUERY, ["fits again"], soon())


async def test_a_cancelled_request_is_never_computed(batcher: Batcher, encoder: GatedEncoder) -> None:
    running = ask(batcher, "running")
    await encoder.began.get()
    gone = ask(batcher, "gone")
    kept = ask(batcher, "kept")
    await asyncio.sleep(0)
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    assert batcher.texts_waiting == 1
    encoder.permits.release(9)
    await asyncio.gather(running, kept)
    assert encoder.passes == [["running"], ["kept"]]


async def test_cancelling_while_the_pass_runs_harms_nobody_else(batcher: Batcher, encoder: GatedEncoder) -> None:
    blocker = ask(batcher, "blocker")
    await encoder.began.get()
    gone, kept = ask(batcher, "gone"), ask(batcher, "kept")
    await asyncio.sleep(0)
    encoder.permits.release()
    await blocker
    assert await encoder.began.get() == ["gone", "kept"]
    gone.cancel()
    encoder.permits.release()
    await kept


async def test_a_model_failure_hits_its_pass_only_and_is_not_quoted(batcher: Batcher, encoder: GatedEncoder) -> None:
    encoder.permits.release(9)
    with pytest.raises(Internal) as failed:
        await batcher.embed(Lane.QUERY, ["poison"], soon())
    assert "boom" not in str(failed.value)
    await batcher.embed(Lane.QUERY, ["fine"], soon())


async def test_deadlines_are_checked_before_queueing_and_before_the_pass(encoder: GatedEncoder) -> None:
    clock = ManualClock()
    batcher = Batcher(encoder, Limits(4, 6), clock)
    with pytest.raises(DeadlineExceeded):
        await batcher.embed(Lane.QUERY, ["spent"], Deadline(100.0, clock))
    running = asyncio.create_task(batcher.embed(Lane.QUERY, ["running"], Deadline(200.0, clock)))
    await encoder.began.get()
    late = asyncio.create_task(batcher.embed(Lane.QUERY, ["late"], Deadline(101.0, clock)))
    await asyncio.sleep(0)
    clock.now_s = 150.0
    encoder.permits.release(9)
    await running
    with pytest.raises(DeadlineExceeded) as spent:
        await late
    assert spent.value.definite
    assert encoder.passes == [["running"]]
    await batcher.close()


async def test_close_refuses_what_waits_and_finishes_what_runs(encoder: GatedEncoder) -> None:
    batcher = Batcher(encoder, Limits(4, 6), SYSTEM_CLOCK)
    running = ask(batcher, "running")
    await encoder.began.get()
    waiting = ask(batcher, "waiting")
    await asyncio.sleep(0)
    closing = asyncio.create_task(batcher.close())
    with pytest.raises(Unavailable):
        await waiting
    encoder.permits.release(9)
    await running
    await closing
    with pytest.raises(Unavailable):
        await batcher.embed(Lane.QUERY, ["too late"], soon())
