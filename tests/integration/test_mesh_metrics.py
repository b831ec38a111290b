"""Scraping a real mesh: off by default, on loopback when asked for, and a port in use is named."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families

from ostraka import NewDocument, NewPassage
from ostraka.cli.mesh_file import NODES_DEFAULT, free_ports, mesh_toml, prepare
from services.runtime.config import child_environment
from tests.mesh import MakeMesh, Mesh

pytestmark = pytest.mark.processes

PROCESSES = 6
TIMEOUT_S = 10.0


def consecutive_ports(count: int) -> int:
    """The first of `count` ports in a row that were free a moment ago."""
    for first in range(20_000, 30_000, 37):
        held = []
        try:
            for port in range(first, first + count):
                held.append(socket.socket())
                held[-1].bind(("127.0.0.1", port))
            return first
        except OSError:
            continue
        finally:
            for one in held:
                one.close()
    raise AssertionError("no free ports in a row")


def scrape(port: int) -> dict[str, list[tuple[dict[str, str], float]]]:
    """Samples by name, as Prometheus's own parser reads them."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=TIMEOUT_S) as reply:
        text = reply.read().decode()
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((dict(sample.labels), sample.value))
    return found


def test_off_by_default(mesh: Mesh) -> None:
    assert mesh.config.telemetry.metrics_port == 0


def test_every_process_has_an_endpoint_of_its_own(make_mesh: MakeMesh) -> None:
    first = consecutive_ports(PROCESSES)
    mesh = make_mesh(f"[telemetry]\nmetrics_port = {first}\n")

    async def use() -> None:
        async with mesh.client() as client:
            await client.upsert([NewDocument(document_id="m", passages=[NewPassage(text="a measured word")])])
            await client.search("measured", mode="hybrid")
            await client.search("measured")

    asyncio.run(use())
    found = [scrape(first + number) for number in range(PROCESSES)]
    names = {labels["service_name"] for one in found for labels, _ in one["target_info"]}
    assert names == {"embed", "router", "generator", "shard"}
    router, shards = found[1], found[3:]
    calls = {labels["rpc_method"]: value for labels, value in router["rpc_server_duration_seconds_count"]}
    assert calls["ostraka.v1.RouterService/Search"] == 2
    cached = {labels["outcome"]: value for labels, value in router["ostraka_router_query_cache_total"]}
    assert cached == {"hit": 1, "miss": 1}
    for shard in shards:
        rows = [value for labels, value in shard["ostraka_replica_rows"] if labels["state"] == "live"]
        assert sum(rows) == 1
        assert all(value == 1 for _, value in shard["ostraka_replica_serving"])
        replicas = {labels["replica"] for labels, _ in shard["ostraka_replica_rows"]}
        assert all(len(replica) == 8 for replica in replicas)
    modes = {
        labels["mode"] for shard in shards for labels, _ in shard.get("ostraka_shard_queue_wait_seconds_count", ())
    }
    assert modes == {"dense", "hybrid"}


def test_a_port_in_use_ends_the_start_with_its_name(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("taken") / "mesh.toml"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        text = mesh_toml(ports=free_ports(("embed", "router", "generator", *NODES_DEFAULT)))
        # The generator's endpoint is the third.
        path.write_text(f"{text}\n[telemetry]\nmetrics_port = {port - 2}\n", encoding="utf-8")
        prepare(path)
        ended = subprocess.run(
            [sys.executable, "-m", "services.generator", "--mesh-file", str(path)],
            env=child_environment(),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert ended.returncode == 2
    assert f"metrics cannot listen on 127.0.0.1:{port}" in ended.stderr.splitlines()[-1]
