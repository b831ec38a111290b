"""Work that may take seconds of CPU and must not be felt by searches: a thread of its own at low priority."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

import threadpoolctl

from services.shard import faiss_index

NICE = 10
SWITCH_S = 0.0002
"""How long a thread may keep the interpreter from others that want it. FAISS gives it up some ten times in a search and
must get it back each time: at Python's 5 ms, beside a writer and a build, the p95 of searches was 600 times the idle
one."""
T = TypeVar("T")


def share_cores() -> None:
    """Make threads of this process take turns quickly, and BLAS work in the thread that calls it alone: a build would
    take every core from searches. Once per process, before its threads begin."""
    sys.setswitchinterval(SWITCH_S)
    threadpoolctl.threadpool_limits(1, user_api="blas")


async def in_background(name: str, work: Callable[[], T]) -> T:
    """Run `work` in a thread called `name` with low priority: searches go first when there are too few cores.

    A cancelled caller leaves the thread to itself; it must hold nothing that anyone waits for.
    """
    future: Future[T] = Future()
    future.set_running_or_notify_cancel()  # from here on a cancelled waiter changes nothing

    def run() -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)  # Linux: of this thread alone
        faiss_index.use_one_thread()
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return await asyncio.wrap_future(future)
