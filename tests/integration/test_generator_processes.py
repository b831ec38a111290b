"""The generator as a process: its exit codes, and a real language model behind a real OpenAI-compatible server."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from pydoc_data.topics import topics

import grpc
import openai
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from ostraka.v1 import generator_pb2, generator_pb2_grpc, passage_pb2
from services.generator.abstention import ABSTENTION
from services.runtime.channel import open_channel
from services.runtime.config import Config, load
from services.runtime.tls import Role, dev_certificates

pytestmark = [pytest.mark.processes, pytest.mark.slow]
ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / ".cache" / "smollm2" / "SmolLM2-135M-Instruct"
START_S = 120


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def mesh_file(directory: Path, port: int, *lines: str) -> Config:
    path = directory / "mesh.toml"
    path.write_text("\n".join(["[generator]", f'addresses = ["127.0.0.1:{port}"]', *lines, ""]))
    config = load(path, {})
    dev_certificates(config)
    return config


async def spawn(*arguments: str, **environment: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        *arguments,
        cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1", **environment},
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )


async def output(process: asyncio.subprocess.Process) -> str:
    """Everything the process still writes until it ends."""
    _, stderr = await asyncio.wait_for(process.communicate(), START_S)
    return stderr.decode()


async def generator(config: Config, **environment: str) -> asyncio.subprocess.Process:
    return await spawn("-m", "services.generator", "--mesh-file", str(config.path), **environment)


@dataclass(frozen=True)
class Running:
    process: asyncio.subprocess.Process
    stub: generator_pb2_grpc.GeneratorServiceAsyncStub


@asynccontextmanager
async def running(config: Config) -> AsyncIterator[Running]:
    process = await generator(config)
    channel = open_channel(config, config.generator.addresses[0], server_role=Role.GENERATOR, identity="router")
    try:
        check = health_pb2_grpc.HealthStub(channel).Check
        reply = await check(health_pb2.HealthCheckRequest(), wait_for_ready=True, timeout=START_S)
        assert reply.status == health_pb2.HealthCheckResponse.SERVING
        yield Running(process, generator_pb2_grpc.GeneratorServiceStub(channel))
    finally:
        await channel.close()
        if process.returncode is None:
            process.kill()
        await output(process)


def request(question: str, *names: str, max_tokens: int = 0) -> generator_pb2.GenerateRequest:
    rows = [passage_pb2.Passage(passage_id=f"{name}#0", title=name, text=topics[name][:700]) for name in names]
    return generator_pb2.GenerateRequest(
        question=question, passages=[generator_pb2.PromptPassage(passage=row) for row in rows], max_tokens=max_tokens
    )


async def answer(
    stub: generator_pb2_grpc.GeneratorServiceAsyncStub, asked: generator_pb2.GenerateRequest
) -> list[generator_pb2.GenerateEvent]:
    return [event async for event in stub.Generate(asked, timeout=110)]


async def test_serves_by_default_and_stops_on_sigterm(tmp_path: Path) -> None:
    async with running(mesh_file(tmp_path, free_port())) as found:
        events = await answer(found.stub, request("How does a lambda expression work?", "lambda", "with"))
        assert "lambda" in events[-1].generated.text
        assert list(events[-1].generated.cited_numbers)
        found.process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(found.process.wait(), 30) == 0


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (['backend = "openai"', 'base_url = "ftp://x"', 'model = "m"'], "generator.base_url"),
        (['backend = "openai"', 'base_url = "http://127.0.0.1:1/v1"'], "generator.model"),
        (["context_tokens_max = 600"], "generator.context_tokens_max"),
    ],
)
async def test_a_wrong_configuration_is_told_in_one_line(tmp_path: Path, lines: list[str], says: str) -> None:
    process = await generator(mesh_file(tmp_path, free_port(), *lines))
    told = await output(process)
    assert process.returncode == 2
    assert says in told
    assert "Traceback" not in told


async def test_a_port_in_use_is_told(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        process = await generator(mesh_file(tmp_path, taken.getsockname()[1]))
        told = await output(process)
    assert process.returncode == 1
    assert "in use" in told


@asynccontextmanager
async def language_model() -> AsyncIterator[str]:
    """The base_url of SmolLM2 behind `transformers serve`."""
    if not (MODEL / "config.json").is_file():
        pytest.skip(f"{MODEL} is not there; `make llm-model` fetches and converts it")
    if find_spec("fastapi") is None:
        pytest.skip("transformers[serving] is not installed; install ostraka[llm]")
    port = free_port()
    server = await spawn("-m", "deploy.smollm2", "serve", "--port", str(port))
    url = f"http://127.0.0.1:{port}"
    listening = asyncio.create_task(_listening(server))
    try:
        await asyncio.wait_for(listening, START_S)
        yield f"{url}/v1"
    finally:
        if server.returncode is None:
            server.kill()
        await server.wait()


async def _listening(server: asyncio.subprocess.Process) -> None:
    """Until uvicorn says that it listens; then its log is read on so that the pipe never fills."""
    assert server.stderr is not None
    while line := await server.stderr.readline():
        if b"running on" in line:
            return
    raise AssertionError(f"the server ended with {await server.wait()}")


async def test_a_real_model_streams_cites_or_not_abstains_and_stops(tmp_path: Path) -> None:
    async with language_model() as base_url:
        lines = ['backend = "openai"', f'base_url = "{base_url}"', f'model = "{MODEL.name}"', "answer_tokens_max = 400"]
        async with running(mesh_file(tmp_path, free_port(), *lines)) as found:
            await _streams(found.stub)
            await _abstains_without_asking(found.stub)
            await _stops(found.stub)
            await _refuses_an_unknown_model(base_url)


async def _streams(stub: generator_pb2_grpc.GeneratorServiceAsyncStub) -> None:
    events = await answer(stub, request("What does the with statement do?", "with", "lambda", max_tokens=24))
    prompt, generated = events[0].prompt, events[-1].generated
    deltas = [event.delta for event in events[1:-1]]
    assert (prompt.model, list(prompt.passage_ids)) == (MODEL.name, ["with#0", "lambda#0"])
    assert len(deltas) > 3
    assert 0 < generated.completion_tokens <= 24
    assert generated.finish_reason in ("stop", "length")
    assert set(generated.cited_numbers) <= {1, 2}
    # 135 million parameters seldom cite; what counts is that citations are reported as written.
    assert all(f"[{number}]" in generated.text for number in generated.cited_numbers)
    assert generated.time_to_first_token_us > 0


async def _abstains_without_asking(stub: generator_pb2_grpc.GeneratorServiceAsyncStub) -> None:
    generated = (await answer(stub, request("What is the capital of Mongolia?")))[-1].generated
    assert (generated.text, generated.abstained, list(generated.cited_numbers)) == (ABSTENTION, True, [])


async def _stops(stub: generator_pb2_grpc.GeneratorServiceAsyncStub) -> None:
    """A cancelled call leaves the model free for the next one."""
    call = stub.Generate(request("Explain everything about lists at length.", "lists", max_tokens=400), timeout=110)
    async for event in call:
        if event.WhichOneof("event") == "delta":
            break
    call.cancel()
    assert await call.code() is grpc.StatusCode.CANCELLED
    events = await answer(stub, request("What is lambda?", "lambda", max_tokens=16))
    assert events[-1].generated.text


async def _refuses_an_unknown_model(base_url: str) -> None:
    """What a real server says to a wrong model name is a precondition, not an outage."""
    from services.generator.upstream import Endpoint

    async with openai.AsyncOpenAI(api_key="none", base_url=base_url, max_retries=0) as client:
        with pytest.raises(openai.APIStatusError) as refused:
            await client.chat.completions.create(model="other", messages=[{"role": "user", "content": "hi"}])
    found = Endpoint.of(base_url, "OPENAI_API_KEY", None).error(refused.value)
    assert found.code is grpc.StatusCode.FAILED_PRECONDITION
