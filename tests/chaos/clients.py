"""Clients: one call after the other, each in a session of its own; everything they see goes into the history."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, replace

from ostraka.client import Client
from ostraka.documents import NewDocument, NewPassage
from ostraka.errors import OstrakaError
from ostraka.results import Consistency, DocumentWrite, Outcome, WriteResult
from tests.chaos.corpus import QUERIES, VECTORS, text_of
from tests.chaos.recorder import Recorder, now_us
from tests.chaos.situation import Calls, Situation
from tests.simulation.history import Level, Write

CLIENTS = 8
DOCUMENTS = 32
PASSAGES_MAX = 4
PAUSE_S = 0.002
"""Between calls, and ten times as long after one that failed."""
WRITE_SHARE = 0.3
DELETE_SHARE = 0.2
GET_SHARE = 0.08
REPEATS_MAX = 3
"""Of a write whose outcome is not known."""
GIVE_UP_SHARE = 0.3
"""How often it is left at that instead."""
_CONSISTENCY = {
    Level.LINEARIZABLE: Consistency.LINEARIZABLE,
    Level.QUORUM: Consistency.QUORUM,
    Level.SESSION: Consistency.SESSION,
    Level.ONE: Consistency.ONE,
}


@dataclass(slots=True)
class _Sent:
    """A write on its way."""

    writes: list[Write]
    documents: list[NewDocument]
    """Empty: a deletion."""
    key: str
    fresh: bool = True
    """Never sent before: what is refused now has not happened."""

    def done(self, write: Write) -> None:
        """Nothing more is to be sent of this one."""
        self.writes = [other for other in self.writes if other is not write]
        self.documents = [other for other in self.documents if other.document_id != write.document_id]


class ChaosClient:
    """A closed loop until it is cancelled; reads only while writing is paused."""

    def __init__(
        self,
        session: int,
        client: Client,
        recorder: Recorder,
        situation: Situation,
        calls: Calls,
        seed: int,
    ) -> None:
        self._session, self._recorder, self._situation, self._calls = session, recorder, situation, calls
        self._random = random.Random(f"{seed}/client/{session}")
        self._client = client
        self._made = 0
        self.writing = True
        self.idle = asyncio.Event()
        """No write is under way."""
        self.idle.set()

    async def run(self) -> None:
        """Call for ever; closes its client at the end."""
        try:
            while True:
                fine = await self._step()
                await asyncio.sleep(PAUSE_S if fine else 10 * PAUSE_S)
        finally:
            await self._client.close()

    async def _step(self) -> bool:
        if self.writing and self._random.random() < WRITE_SHARE:
            self.idle.clear()
            try:
                return await self._write()
            finally:
                self.idle.set()
        if self._random.random() < GET_SHARE:
            return await self._get()
        return await self._search()

    async def _search(self) -> bool:
        level = self._random.choices((Level.QUORUM, Level.SESSION, Level.ONE), (9, 2, 1))[0]
        query, k = self._random.randrange(QUERIES), self._random.choice((3, 10, 10, 10, 200))
        invoked_us, before = now_us(), self._situation.kind
        failure = ""
        try:
            result = await self._client.search(
                self._recorder.corpus.queries[query], k=k, consistency=_CONSISTENCY[level]
            )
        except OstrakaError as error:
            failure = f"search {type(error).__name__} {error.message}"
        else:
            assert result.complete, "partial coverage was not asked for"
            self._recorder.searched(level, self._session, query, k, invoked_us, result.hits)
        if level is Level.QUORUM:
            self._calls.add(before, self._situation.kind, failure)
        return not failure

    async def _get(self) -> bool:
        document_id = self._document()
        invoked_us, before = now_us(), self._situation.kind
        failure = ""
        level = self._random.choice((Level.QUORUM, Level.LINEARIZABLE))
        try:
            result = await self._client.get([document_id], consistency=_CONSISTENCY[level])
        except OstrakaError as error:
            failure = f"get {type(error).__name__} {error.message}"
        else:
            self._recorder.looked_up(level, self._session, document_id, invoked_us, result.passages)
        self._calls.add(before, self._situation.kind, failure)
        return not failure

    async def _write(self) -> bool:
        """A write, and while its outcome is not known its repetitions."""
        sent = self._next_write()
        for _ in range(1 + REPEATS_MAX):
            if await self._attempt(sent) or self._random.random() < GIVE_UP_SHARE:
                break
        return not sent.writes

    def _next_write(self) -> _Sent:
        self._made += 1
        name = f"{self._session}.{self._made}"
        ids = sorted({self._document() for _ in range(self._random.choice((1, 1, 1, 2)))})
        if self._random.random() < DELETE_SHARE:
            return _Sent([self._recorder.begin(each, (), self._session, name) for each in ids], [], name)
        key = name if self._random.random() < 0.5 else ""
        sent = _Sent([], [], key)
        for document_id in ids:
            vectors = [self._random.randrange(VECTORS) for _ in range(self._random.randint(1, PASSAGES_MAX))]
            texts = [text_of(f"{name}/{ordinal}", vector) for ordinal, vector in enumerate(vectors)]
            passages = [
                NewPassage(text=text, vector=self._recorder.corpus.vectors[vector])
                for text, vector in zip(texts, vectors, strict=True)
            ]
            sent.documents.append(NewDocument(document_id=document_id, passages=passages, source="test:chaos"))
            contents = tuple(text.encode() for text in texts)
            sent.writes.append(self._recorder.begin(document_id, contents, self._session, key))
        return sent

    async def _attempt(self, sent: _Sent) -> bool:
        """Send what is not decided yet; whether nothing is left to be sent."""
        before = self._situation.kind
        failure = ""
        try:
            result = await self._send(sent)
        except OstrakaError as error:
            failure = f"write {type(error).__name__} {error.message}"
            for write in list(sent.writes):
                self._failed(sent, write, never=error.definite)
        else:
            for outcome in result.documents:
                failure = self._learn(sent, outcome) or failure
        sent.fresh = False
        self._calls.add(before, self._situation.kind, failure)
        return not sent.writes

    async def _send(self, sent: _Sent) -> WriteResult:
        if sent.documents:
            return await self._client.upsert(sent.documents, idempotency_key=sent.key, check=False)
        ids = [write.document_id for write in sent.writes]
        return await self._client.delete(ids, idempotency_key=sent.key, check=False)

    def _learn(self, sent: _Sent, outcome: DocumentWrite) -> str:
        """What became of one document; why it failed, "" when it did not."""
        write = next(write for write in sent.writes if write.document_id == outcome.document_id)
        if outcome.outcome is Outcome.ACKNOWLEDGED:
            self._recorder.acknowledged(write, outcome.version)
            sent.done(write)
            return ""
        if outcome.outcome is Outcome.UNCERTAIN:
            self._recorder.told(write, outcome.version)
            if not sent.key:
                sent.documents = [
                    replace(document, retry_version=outcome.version)
                    if document.document_id == write.document_id
                    else document
                    for document in sent.documents
                ]
        else:
            self._failed(sent, write, never=True)
        return f"write {outcome.outcome.name} {outcome.reason}"

    def _failed(self, sent: _Sent, write: Write, *, never: bool) -> None:
        """`never`: what was sent last will not appear. Without a key the same content must not be sent again: that
        would be another write."""
        if never and sent.fresh:
            self._recorder.forget(write)
        if not sent.key or (never and sent.fresh):
            sent.done(write)

    def _document(self) -> str:
        return f"d{self._random.randrange(DOCUMENTS):02d}"
