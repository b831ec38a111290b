"""The embed service as a process: earned readiness, exit codes, and nothing half done."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from pathlib import Path

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from ostraka.v1 import embed_pb2, embed_pb2_grpc
from services.runtime.channel import open_channel
from services.runtime.config import Config, load
from services.runtime.tls import Role, dev_certificates

pytestmark = pytest.mark.processes
ROOT = Path(__file__).resolve().parents[2]
START_S = 120
BROKEN = "@broken-model"


def mesh_file(directory: Path, port: int, *lines: str) -> Config:
    path = directory / "mesh.toml"
    path.write_text("\n".join(["[embed]", f'addresses = ["127.0.0.1:{port}"]', *lines, ""]))
    config = load(path, {})
    dev_certificates(config)
    return config


async def embed(config: Config) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services.embed", "--mesh-file", str(config.path)),
        cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def ended(process: asyncio.subprocess.Process) -> str:
    _, stderr = await asyncio.wait_for(process.communicate(), START_S)
    return stderr.decode()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def test_serves_when_ready_and_stops_on_sigterm(tmp_path: Path) -> None:
    config = mesh_file(tmp_path, free_port())
    process = await embed(config)
    channel = open_channel(config, config.embed.addresses[0], server_role=Role.EMBED, identity="router")
    try:
        health = health_pb2_grpc.HealthStub(channel)
        watch = health.Watch(health_pb2.HealthCheckRequest(), wait_for_ready=True, timeout=START_S)
        async for reply in watch:
            if reply.status == health_pb2.HealthCheckResponse.SERVING:
                break
        reply = await embed_pb2_grpc.EmbedServiceStub(channel).Embed(embed_pb2.EmbedRequest(texts=["x"]), timeout=30)
        assert len(reply.vectors) == 384 * 4
        process.send_signal(signal.SIGTERM)
        await ended(process)
        assert process.returncode == 0
    finally:
        await channel.close()
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ([f'model_sha256 = "{"0" * 64}"'], "expected 0000"),
        (['model = "no-such/model"'], "no-such/model"),
        (['model = "."'], "not a model"),
        ([f'model = "{BROKEN}"'], "cannot be loaded"),
    ],
)
async def test_a_wrong_model_is_told_in_one_line(tmp_path: Path, lines: list[str], says: str) -> None:
    broken = tmp_path / "broken-model"
    broken.mkdir()
    (broken / "config.json").write_text('{"model_type": "bert"}')
    (broken / "model.safetensors").write_bytes(b"not tensors")
    process = await embed(mesh_file(tmp_path, free_port(), *(line.replace(BROKEN, str(broken)) for line in lines)))
    told = await ended(process)
    assert process.returncode == 2
    assert says in told
    assert "Traceback" not in told
