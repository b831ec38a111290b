"""A real shard process: SIGKILL while it writes, then every acknowledged row is there."""

from __future__ import annotations

import asyncio
import signal
import sys
from asyncio.subprocess import DEVNULL, Process
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from ostraka.cli.mesh_file import free_ports
from ostraka.v1 import shard_pb2, shard_pb2_grpc
from services.runtime import topology_file
from services.runtime.channel import open_channel
from services.runtime.config import Config, load
from services.runtime.tls import Role, dev_certificates
from tests.integration.shard_nodes import COLLECTION, now, search_request, write_request
from tests.unit.shard_rows import DIM, batch

KILLS = 3
WRITERS = 4
TIMEOUT_S = 20.0
START_S = 60.0


def one_node(directory: Path) -> Config:
    path = directory / "mesh.toml"
    path.write_text(
        "[shard]\ndisk_reserve_bytes = 0\ndelta_rows_flush = 24\ntrain_rows_min = 120\n"
        f'[nodes.n1]\naddress = "127.0.0.1:{free_ports(["n1"])["n1"]}"\n'
        f"[collections.{COLLECTION}]\nshards = 1\nreplicas = 1\nread_quorum = 1\nwrite_quorum = 1\ndim = {DIM}\n",
        encoding="utf-8",
    )
    config = load(path, {})
    dev_certificates(config)
    topology_file.bootstrap(config)
    return config


async def start(config: Config, channel: grpc.aio.Channel) -> Process:
    """The process, once it says that it is serving."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "services.shard", "--mesh-file", str(config.path), "--node", "n1"),
        stdout=DEVNULL,
        stderr=DEVNULL,
    )
    health = health_pb2_grpc.HealthStub(channel)
    watch = health.Watch(health_pb2.HealthCheckRequest(), timeout=START_S, wait_for_ready=True)
    async for reply in watch:
        if reply.status == health_pb2.HealthCheckResponse.SERVING:
            watch.cancel()
            return process
    raise AssertionError("the watch ended before the node served")


@pytest.mark.processes
@pytest.mark.slow
async def test_every_acknowledged_row_survives_sigkill(tmp_path: Path) -> None:
    config = one_node(tmp_path)
    acknowledged: dict[int, int] = {}
    step = 0
    for _ in range(KILLS):
        channel = open_channel(config, config.nodes["n1"].address, server_role=Role.SHARD, identity="admin")
        stub = shard_pb2_grpc.ShardServiceStub(channel)
        process = await start(config, channel)
        await check(stub, acknowledged)
        enough = asyncio.Event()
        writers = [
            asyncio.create_task(write_until_killed(stub, step + lane, acknowledged, enough))
            for lane in range(1, WRITERS + 1)
        ]
        await asyncio.wait_for(enough.wait(), TIMEOUT_S)
        process.send_signal(signal.SIGKILL)
        await asyncio.gather(*writers)
        assert await process.wait() == -signal.SIGKILL
        await channel.close()
        step = max(acknowledged) + 2 * WRITERS
    channel = open_channel(config, config.nodes["n1"].address, server_role=Role.SHARD, identity="admin")
    process = await start(config, channel)
    stub = shard_pb2_grpc.ShardServiceStub(channel)
    await check(stub, acknowledged)
    (replica,) = (config.data_dir / "nodes/n1").glob("*/segments")
    assert any(replica.iterdir()), "segments were built and merged while it was killed"
    entry = batch(1, [("d1", 2)])
    (leg,) = (await stub.Search(search_request(entry, k=1), timeout=TIMEOUT_S)).shards
    assert leg.results[0].hits[0].document_id == "d1"
    process.send_signal(signal.SIGTERM)
    assert await asyncio.wait_for(process.wait(), TIMEOUT_S) == 0
    await channel.close()


async def write_until_killed(
    stub: shard_pb2_grpc.ShardServiceAsyncStub, number: int, acknowledged: dict[int, int], enough: asyncio.Event
) -> None:
    """One document after the other; `enough` is set at every 40th acknowledgement of all writers."""
    while True:
        entry = batch(number, [(f"d{number}", 2)])
        try:
            reply = await stub.Write(write_request(entry, now(entry)), timeout=TIMEOUT_S)
        except grpc.aio.AioRpcError:
            return
        assert reply.status == shard_pb2.REPLICA_STATUS_OK
        acknowledged[number] = reply.hlc_max
        number += WRITERS
        if len(acknowledged) % 40 == 0:
            enough.set()


async def check(stub: shard_pb2_grpc.ShardServiceAsyncStub, acknowledged: dict[int, int]) -> None:
    """Every acknowledged document is there, whole, and its batch counts as applied."""
    numbers = sorted(acknowledged)
    for at in range(0, len(numbers), 200):
        request = shard_pb2.GetDocumentsRequest(
            epoch=1, collection=COLLECTION, document_ids=[f"d{number}" for number in numbers[at : at + 200]]
        )
        reply = await stub.GetDocuments(request, timeout=TIMEOUT_S)
        assert reply.status == shard_pb2.REPLICA_STATUS_OK
        assert len(reply.documents) == len(numbers[at : at + 200])
        assert all(len(document.passages) == 2 for document in reply.documents)
        spans = reply.view.sources[0].bounds
        applied = {seq for low, high in zip(spans[::2], spans[1::2], strict=True) for seq in range(low, high + 1)}
        assert applied.issuperset(numbers)
