"""One direction of who calls whom, passed on in user space: slowed, stalled, or dead without a word.

It listens in the caller's namespace and connects from there, so packet filters between the two namespaces still hold.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
from dataclasses import dataclass, field
from typing import Protocol

CHUNK_BYTES = 65_536
CHUNKS_MAX = 256
"""Waiting in one direction of one connection; then the sender waits."""
STALL_S = (0.2, 1.0)
"""What a lost segment costs everything behind it: one to a few retransmission timeouts."""


class Sockets(Protocol):
    """Where connections begin and end; a `Network` is one."""

    def socket_in(self, name: str) -> socket.socket:
        """A TCP socket of the namespace `name`."""
        ...


@dataclass(frozen=True, slots=True)
class Weather:
    """What a link does to bytes."""

    delay_s: tuple[float, float] = (0.0, 0.0)
    """Least and most that each chunk takes; chunks never overtake each other."""
    stall_share: float = 0.0
    """Share of chunks that come late by STALL_S."""
    swallowed: bool = False
    """New connections are accepted and never heard of again."""


@dataclass(slots=True, eq=False)
class _Passage:
    """One connection through the proxy."""

    caller: asyncio.StreamWriter
    dead: bool = False
    """Neither side hears of the other again, and neither is told."""
    tasks: list[asyncio.Task[None]] = field(default_factory=list)


class LinkProxy:
    """Listens on `port` of 127.0.0.1 in the namespace `caller`, 0 for any, for `address`."""

    def __init__(self, sockets: Sockets, caller: str, port: int, address: str, rng: random.Random) -> None:
        self._sockets, self._caller, self.port, self._address = sockets, caller, port, address
        self._rng = rng
        self._passages: set[_Passage] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self.weather = Weather()

    async def start(self) -> None:
        """Listen. Raises OSError."""
        listening = self._sockets.socket_in(self._caller)
        listening.bind(("127.0.0.1", self.port))
        self.port = listening.getsockname()[1]
        self._server = await asyncio.start_server(self._accept, sock=listening)

    def cut(self) -> None:
        """Half-open from now on: every connection there is dies for good, with nobody told; new ones are swallowed."""
        self.weather = Weather(swallowed=True)
        for passage in self._passages:
            passage.dead = True

    def clear(self) -> None:
        """New connections and new bytes pass; what was cut stays dead until its caller gives it up."""
        self.weather = Weather()

    async def close(self) -> None:
        """Stop listening and drop every connection."""
        if self._server is not None:
            self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        passage = _Passage(writer, dead=self.weather.swallowed)
        self._passages.add(passage)
        ends = [writer]
        try:
            if passage.dead:
                await _swallow(reader)
                return
            far_reader, far_writer = await self._connect()
            ends.append(far_writer)
            ways = (self._carry(passage, reader, far_writer), self._carry(passage, far_reader, writer))
            passage.tasks = [asyncio.create_task(way) for way in ways]
            await asyncio.wait(passage.tasks, return_when=asyncio.FIRST_COMPLETED)
        except OSError:
            pass  # the far side is down: the caller sees its connection close
        finally:
            for way in passage.tasks:
                way.cancel()
            await asyncio.gather(*passage.tasks, return_exceptions=True)
            self._passages.discard(passage)
            for end in ends:
                end.transport.abort()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        host, _, port = self._address.rpartition(":")
        far = self._sockets.socket_in(self._caller)
        far.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(far, (host, int(port)))
        except BaseException:
            far.close()
            raise
        return await asyncio.open_connection(sock=far)

    async def _carry(self, passage: _Passage, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Until one side closes. A dead connection is read on, so that its sender's kernel goes on acknowledging."""
        loop = asyncio.get_running_loop()
        waiting: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(CHUNKS_MAX)

        async def deliver() -> None:
            while True:
                due_s, data = await waiting.get()
                if (pause_s := due_s - loop.time()) > 0:
                    await asyncio.sleep(pause_s)
                if passage.dead:
                    continue
                writer.write(data)
                await writer.drain()

        delivering = asyncio.create_task(deliver())
        try:
            due_s = 0.0
            while data := await reader.read(CHUNK_BYTES):
                due_s = max(due_s, loop.time() + self._rng.uniform(*self.weather.delay_s))
                if self._rng.random() < self.weather.stall_share:
                    due_s += self._rng.uniform(*STALL_S)
                await waiting.put((due_s, data))
            if passage.dead and writer is passage.caller:
                # The far side's end is something the caller must not hear of either.
                await asyncio.Event().wait()
        except OSError:
            return
        finally:
            delivering.cancel()
            with contextlib.suppress(asyncio.CancelledError, OSError):
                await delivering


async def _swallow(reader: asyncio.StreamReader) -> None:
    with contextlib.suppress(OSError):
        while await reader.read(CHUNK_BYTES):
            pass
