"""A mesh of real processes, each in its own network namespace: three nodes and two routers.

Clients bring vectors along, so neither the embed service nor the generator runs. Every caller has a mesh file of its
own, in which some addresses are those of a proxy on its own loopback; the supervisor and the clients see the real ones.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import grpc

from ostraka.cli.mesh_file import prepare
from ostraka.cli.supervisor import Launch, Supervisor
from ostraka.client import Client, ClientOptions
from ostraka.retry import RetryPolicy
from ostraka.v1 import shard_pb2
from ostraka.v1.shard_pb2_grpc import ShardServiceStub
from services.runtime.channel import open_channel
from services.runtime.config import Config
from services.runtime.tls import Role
from tests.chaos.corpus import DIM
from tests.chaos.link_proxy import LinkProxy
from tests.chaos.network import Network

COLLECTION = "chaos"
NODES = ("node-a", "node-b", "node-c")
ROUTERS = ("router-0", "router-1")
DISK_NODE = "node-c"
"""Its data lie on a small disk of its own."""
DISK_MIB = 64
DISK_MIB_PER_MINUTE = 8
"""Nothing is purged during a run, so that every version can be accounted for at its end."""
RESERVE_BYTES = 6 * 1024 * 1024
PROXIED_SHARES = (0.3, 0.6, 1.0)
"""Of links that pass through a proxy, by seed; the others are plain TCP."""
START_S = 60.0
STATUS_S = 1.0
DEADLINE_S = 1.0
"""Of every call of a client."""
_PORT = 7400
_PROXY_PORT = 7500
_MESH = """
[mesh]
data_dir = "{data_dir}"
drain_s = 2
[telemetry]
sample_ratio = 0
[router]
addresses = [{routers}]
[shard]
disk_reserve_bytes = {reserve}
delta_rows_flush = 1024
superseded_keep_ms = 7200000
[collections.{collection}]
shards = 2
replicas = 3
read_quorum = 2
write_quorum = 2
dim = {dim}
embedding_model = "made-for-tests"
"""


@dataclass(frozen=True, slots=True)
class Link:
    """Who calls whom."""

    caller: str
    callee: str


class NetMesh:
    """The processes, their network, and the means to disturb both."""

    def __init__(self, directory: Path, seed: int, minutes: float) -> None:
        rng = random.Random(f"{seed}/links")
        self.network = Network()
        self.directory = directory
        self.disk_dir = directory / "data" / "nodes" / DISK_NODE
        self._addresses = {name: f"{self.network.add(name)}:{_PORT}" for name in (*NODES, *ROUTERS)}
        self._clocks: dict[str, tuple[str, ...]] = {}
        links = [Link(caller, node) for caller in (*ROUTERS, *NODES) for node in NODES if caller != node]
        share = rng.choice(PROXIED_SHARES)
        proxied = [link for link in links if rng.random() < share] or links[:1]
        self.proxies = {
            link: LinkProxy(
                self.network,
                link.caller,
                _PROXY_PORT + port,
                self._addresses[link.callee],
                random.Random(f"{seed}/{link.caller}/{link.callee}"),
            )
            for port, link in enumerate(proxied)
        }
        self._mount(minutes)
        for caller in (*NODES, *ROUTERS):
            self._write_mesh_file(caller)
        self.config: Config = prepare(self._write_mesh_file(""))
        self.supervisor = Supervisor(self.config, self._launch)
        self._channels: dict[str, grpc.aio.Channel] = {}

    @property
    def router_addresses(self) -> tuple[str, ...]:
        return tuple(self._addresses[name] for name in ROUTERS)

    async def start(self) -> None:
        """Start everything and wait until all say SERVING. Raises OSError, SupervisorError."""
        for proxy in self.proxies.values():
            await proxy.start()
        await self.bring_up(*NODES, *ROUTERS)

    async def bring_up(self, *names: str) -> None:
        """Start these and wait until they say SERVING. Raises SupervisorError."""
        for name in names:
            await asyncio.to_thread(self.supervisor.start, name)
        await self.supervisor.wait_serving(names, START_S)

    async def kill(self, *names: str) -> None:
        """SIGKILL each and wait for its end."""
        await asyncio.gather(*(asyncio.to_thread(self.supervisor.kill, name) for name in names))

    def set_clock(self, name: str, offset: str) -> None:
        """From its next start on the process sees a wall clock that is off by this, like "+2s"; "": the right one.

        Its monotonic clock stays right, as when a clock is set.
        """
        self._clocks.pop(name, None)
        if offset:
            preload = f"LD_PRELOAD={faketime_library()}"
            self._clocks[name] = ("env", preload, f"FAKETIME={offset}", "FAKETIME_DONT_FAKE_MONOTONIC=1")

    async def client(self, *routers: str) -> Client:
        """An open client of these routers that never repeats a call by itself."""
        options = ClientOptions(timeout_s=DEADLINE_S, retry=RetryPolicy(attempts_max=1))
        return await Client.connect(routers, certs=self.config.certs_dir, collection=COLLECTION, options=options)

    async def status(self, node: str) -> shard_pb2.NodeStatusResponse:
        """What a node says of itself, asked directly. Raises grpc.aio.AioRpcError."""
        if node not in self._channels:
            address = self._addresses[node]
            self._channels[node] = open_channel(self.config, address, server_role=Role.SHARD, identity=Role.ADMIN.value)
        stub = ShardServiceStub(self._channels[node])
        reply: shard_pb2.NodeStatusResponse = await stub.NodeStatus(shard_pb2.NodeStatusRequest(), timeout=STATUS_S)
        return reply

    async def stop(self) -> list[str]:
        """Stop every process; the names of those that had to be killed."""
        for channel in self._channels.values():
            await channel.close()
        self._channels.clear()
        killed = await asyncio.to_thread(self.supervisor.stop_all)
        for proxy in self.proxies.values():
            await proxy.close()
        return killed

    def unmount(self, *, keep: bool) -> None:
        """Give the small disk back. `keep`: leave a copy of what was on it where it was."""
        copied = self.directory / "copied"
        if keep:
            shutil.copytree(self.disk_dir, copied)
        subprocess.run(["umount", "--lazy", str(self.disk_dir)], check=False)
        if keep:
            shutil.copytree(copied, self.disk_dir, dirs_exist_ok=True)
            shutil.rmtree(copied)

    def _mount(self, minutes: float) -> None:
        self.disk_dir.mkdir(parents=True)
        size_mib = DISK_MIB + max(0, round(DISK_MIB_PER_MINUTE * (minutes - 3)))
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size_mib}m", "none", str(self.disk_dir)], check=True)

    def _launch(self, name: str) -> Launch:
        prefix = (*self.network.prefix(name), *self._clocks.get(name, ()))
        return Launch(prefix, self._mesh_file(name))

    def _mesh_file(self, caller: str) -> Path:
        return self.directory / f"mesh-{caller or 'all'}.toml"

    def _write_mesh_file(self, caller: str) -> Path:
        text = _MESH.format(
            data_dir=self.directory / "data",
            routers=", ".join(f'"{address}"' for address in self.router_addresses),
            reserve=RESERVE_BYTES,
            collection=COLLECTION,
            dim=DIM,
        )
        text += "".join(f'[nodes.{node}]\naddress = "{at}"\n' for node, at in self._seen_by(caller).items())
        path = self._mesh_file(caller)
        path.write_text(text, encoding="utf-8")
        return path

    def _seen_by(self, caller: str) -> Mapping[str, str]:
        seen = {node: self._addresses[node] for node in NODES}
        for link, proxy in self.proxies.items():
            if link.caller == caller:
                seen[link.callee] = f"127.0.0.1:{proxy.port}"
        return seen


def faketime_library() -> Path | None:
    """The library that shifts a process's clock, None where it is not installed."""
    found = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
    return found[0] if found else None


def free_bytes(directory: Path) -> int:
    """Of the disk that `directory` is on."""
    disk = os.statvfs(directory)
    return disk.f_bavail * disk.f_frsize
