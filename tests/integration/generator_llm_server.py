"""An HTTP server that plays an LLM endpoint from a script and notices when its caller hangs up."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

HANG = object()
"""In a script: keep the stream open until the caller goes away."""
CUT = object()
"""In a script: break the connection."""


def chunk(content: str | None = None, finish: str | None = None, **extra: Any) -> str:
    """One server-sent event of a chat completion."""
    delta = {} if content is None else {"content": content}
    body = {
        "id": "x",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "scripted",
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish}],
        **extra,
    }
    return f"data: {json.dumps(body)}\n\n"


DONE = "data: [DONE]\n\n"


class ScriptedLLM:
    """Answers every request with the same script; keeps what it was sent."""

    def __init__(self) -> None:
        self.status = 200
        self.headers: dict[str, str] = {}
        self.body: Sequence[object] = ()
        self.requests: list[dict[str, Any]] = []
        self.authorization: list[str] = []
        self.asked = asyncio.Event()
        self.hung_up = asyncio.Event()
        self.port = 0

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def streams(self, *pieces: object) -> None:
        """Answer with these server-sent events."""
        self.status, self.headers, self.body = 200, {"content-type": "text/event-stream"}, pieces

    def refuses(self, status: int, message: str, **headers: str) -> None:
        """Answer with an error."""
        self.status = status
        self.headers = {"content-type": "application/json", **{k.replace("_", "-"): v for k, v in headers.items()}}
        self.body = (json.dumps({"error": {"message": message}}),)

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        fields = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line)
        self.authorization.append(fields.get("authorization", ""))
        self.requests.append(json.loads(await reader.readexactly(int(fields["content-length"]))))
        self.asked.set()
        lines = [f"HTTP/1.1 {self.status} Scripted", "transfer-encoding: chunked", "connection: close"]
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
        await self._play(reader, writer)
        writer.close()

    async def _play(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for piece in self.body:
            if piece is HANG:
                if not await reader.read():
                    self.hung_up.set()
                return
            if piece is CUT:
                writer.transport.abort()
                return
            data = str(piece).encode() if not isinstance(piece, bytes) else piece
            writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        writer.write(b"0\r\n\r\n")


@asynccontextmanager
async def scripted_llm() -> AsyncIterator[ScriptedLLM]:
    """A running ScriptedLLM on a free loopback port."""
    llm = ScriptedLLM()
    server = await asyncio.start_server(llm.handle, "127.0.0.1", 0)
    llm.port = server.sockets[0].getsockname()[1]
    async with server:
        yield llm
