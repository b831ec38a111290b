"""Reads and writes that never pause, and a record of everything that failed or was wrong."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ostraka.client import Client
from ostraka.documents import NewDocument, NewPassage
from ostraka.errors import OstrakaError
from ostraka.results import Consistency
from tests.chaos.register import Register

DOCUMENTS_PER_WRITER = 4
PROGRESS_WITHIN_S = 60.0

Call: TypeAlias = Callable[[str], Coroutine[Any, Any, None]]


class Traffic:
    """Closed-loop writers and readers at QUORUM against one collection.

    Every writer owns some documents. Readers look for any document, by vector or by id, and hold the answer against
    the register. `problems` fills with what must not happen: failed calls and wrong answers.
    """

    def __init__(self, client: Client, *, dim: int, writers: int, readers: int, timeout_s: float, seed: int) -> None:
        self._client = client
        self._writers = writers
        self._readers = readers
        self._timeout_s = timeout_s
        self._seed = seed
        rng = np.random.default_rng(seed)
        ids = [f"w{w}/d{d}" for w in range(writers) for d in range(DOCUMENTS_PER_WRITER)]
        self.vectors: dict[str, npt.NDArray[np.float32]] = {
            document_id: rng.normal(size=dim).astype(np.float32) for document_id in ids
        }
        self.register = Register()
        self.problems: list[str] = []
        self.inflight = 0
        self.finished = 0
        self.situation = "all up"
        """What is being done to the mesh, for the record of problems."""
        self._moved = asyncio.Event()
        self._open = asyncio.Event()
        self._open.set()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Traffic:
        for writer in range(self._writers):
            self._tasks.append(asyncio.create_task(self._write_for_ever(writer)))
        for reader in range(self._readers):
            self._tasks.append(asyncio.create_task(self._read_for_ever(reader)))
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def pause(self) -> None:
        """Begin no further call."""
        self._open.clear()

    def resume(self) -> None:
        """Go on."""
        self._open.set()

    async def until(self, condition: Callable[[Traffic], bool]) -> None:
        """Wait until the condition holds, looking whenever a call begins or ends. Raises what ended a worker, and
        TimeoutError when it takes too long."""
        async with asyncio.timeout(PROGRESS_WITHIN_S):
            while not condition(self):
                self._moved.clear()
                await self._moved.wait()
                for task in self._tasks:
                    if task.done():
                        task.result()

    async def verify_all(self) -> None:
        """Read every document once more and hold it against the register; call it while paused."""
        for document_id in self.vectors:
            await self._counted(self._get, document_id)

    async def _write_for_ever(self, writer: int) -> None:
        rng = random.Random(f"{self._seed}/writer/{writer}")
        while True:
            await self._open.wait()
            document_id = f"w{writer}/d{rng.randrange(DOCUMENTS_PER_WRITER)}"
            await self._counted(self._write, document_id)

    async def _read_for_ever(self, reader: int) -> None:
        rng = random.Random(f"{self._seed}/reader/{reader}")
        ids = sorted(self.vectors)
        while True:
            await self._open.wait()
            way, document_id = rng.choice((self._get, self._search)), rng.choice(ids)
            await self._counted(way, document_id)

    async def _counted(self, call: Call, document_id: str) -> None:
        self.inflight += 1
        self._moved.set()
        try:
            await call(document_id)
        except OstrakaError as error:
            name = call.__name__.strip("_")
            self.problems.append(f"{name} {document_id} failed ({self.situation}): {type(error).__name__}: {error}")
        finally:
            self.inflight -= 1
            self.finished += 1
            self._moved.set()

    async def _write(self, document_id: str) -> None:
        revision = self.register.begin_write(document_id)
        passage = NewPassage(text=f"revision {revision}", vector=self.vectors[document_id])
        document = NewDocument(document_id=document_id, passages=[passage], source="test:chaos")
        await self._client.upsert([document], timeout_s=self._timeout_s)
        self.register.acknowledge(document_id, revision)

    async def _get(self, document_id: str) -> None:
        floor = self.register.floor(document_id)
        reply = await self._client.get([document_id], consistency=Consistency.QUORUM, timeout_s=self._timeout_s)
        self._check(document_id, floor, [passage.text for passage in reply.passages])

    async def _search(self, document_id: str) -> None:
        floor = self.register.floor(document_id)
        result = await self._client.search(
            self.vectors[document_id], k=3, consistency=Consistency.QUORUM, timeout_s=self._timeout_s
        )
        if not result.complete:
            self.problems.append(f"{document_id}: partial coverage was not asked for: {result.coverage}")
        texts = [hit.passage.text for hit in result if hit.passage.document_id == document_id]
        self._check(document_id, floor, texts)

    def _check(self, document_id: str, floor: int, texts: list[str]) -> None:
        if len(texts) > 1:
            self.problems.append(f"{document_id}: two versions in one answer: {texts}")
        seen = int(texts[0].removeprefix("revision ")) if texts else None
        if problem := self.register.problem(document_id, floor, seen):
            self.problems.append(problem)
