"""Four shard nodes and two routers inside the test's process, on ports that `ostraka replica` can reach as a process of
its own; and traffic whose every answer is checked."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from ostraka.cli.mesh_file import free_ports
from ostraka.v1 import passage_pb2, router_pb2
from services.runtime import topology_file
from services.runtime.config import Config, load
from services.runtime.record_file import FileRecordStore
from services.runtime.tls import dev_certificates
from services.runtime.topology import ShardTopology
from services.shard.following import Following
from tests.integration.level_nodes import LevelRouter
from tests.integration.shard_nodes import COLLECTION, ShardNode
from tests.unit.shard_rows import DIM

NODES = ("n1", "n2", "n3", "n4")
GOSSIP_MS = 50
CALL_S = 15.0
COMMAND_S = 90.0
DOCUMENTS = 12


class Process:
    """`ostraka` with arguments, as a process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def ended(self) -> tuple[int, str]:
        """(exit code, everything it said)"""
        async with asyncio.timeout(COMMAND_S):
            out, err = await self.process.communicate()
        return self.process.returncode or 0, f"{out.decode()}{err.decode()}"

    async def killed(self) -> None:
        self.process.kill()
        await self.process.communicate()


class MemberMesh:
    """One shard, N=3, R=W=2; a fourth node to move to."""

    def __init__(self, directory: Path, *, read_quorum: int = 2, write_quorum: int = 2) -> None:
        self.path = directory / "mesh.toml"
        ports = free_ports(NODES)
        nodes = "\n".join(f'[nodes.{name}]\naddress = "127.0.0.1:{ports[name]}"' for name in NODES)
        self.path.write_text(
            f"[mesh]\ndrain_s = 1.0\n[shard]\ndisk_reserve_bytes = 0\ngossip_ms = {GOSSIP_MS}\n{nodes}\n"
            f"[collections.{COLLECTION}]\nshards = 1\nreplicas = 3\nread_quorum = {read_quorum}\n"
            f"write_quorum = {write_quorum}\ndim = {DIM}\n",
            encoding="utf-8",
        )
        self.config: Config = load(self.path)
        self.ports: Mapping[str, int] = ports
        dev_certificates(self.config)
        topology_file.bootstrap(self.config)
        self.store = FileRecordStore(self.config)
        self.nodes: dict[str, ShardNode] = {}
        self.routers: list[LevelRouter] = []
        self._tasks: dict[str, asyncio.Task[None]] = {}

    @property
    def record(self) -> ShardTopology:
        return topology_file.load(self.config).collections[COLLECTION].shards[0]

    def replica_on(self, node: str) -> str:
        """The id of the member on a node."""
        return next(member.replica_id for member in self.record.members() if member.node == node)

    async def start(self) -> MemberMesh:
        for name in NODES:
            await self.start_node(name)
        for source in (201, 202):
            router = await LevelRouter(self.config, self.nodes, source).start()
            self.routers.append(router)
            self._tasks[f"router {source}"] = asyncio.create_task(router.membership.follow())
        return self

    async def start_node(self, name: str) -> ShardNode:
        made = ShardNode(self.config, name)
        self.nodes[name] = await made.start(self.ports[name])
        made.node.start({node: f"127.0.0.1:{port}" for node, port in self.ports.items()})
        self._tasks[name] = asyncio.create_task(Following(made.node, self.store).run())
        return made

    async def stop_node(self, name: str) -> None:
        await _cancelled(self._tasks.pop(name))
        await self.nodes.pop(name).stop()

    def lose_disk(self, name: str) -> None:
        """Of a node that is stopped."""
        shutil.rmtree(self.config.replica_dir(name, self.replica_on(name)))

    def unwatch(self, router: LevelRouter, source: int) -> None:
        """From now on the router hears of a change only when it looks."""
        self._tasks.pop(f"router {source}").cancel()

    async def command(self, *arguments: str) -> Process:
        """Start `ostraka replica ...`."""
        return Process(
            await asyncio.create_subprocess_exec(
                sys.executable,
                "-c",
                "from ostraka.cli.main import main; main()",
                "replica",
                *arguments,
                "--mesh-file",
                str(self.path),
                "--json",
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
        )

    async def done(self, *arguments: str) -> str:
        """What the command said; it must succeed."""
        code, said = await (await self.command(*arguments)).ended()
        assert code == 0, said
        return said

    async def refused(self, *arguments: str) -> str:
        """What the command said; it must fail."""
        code, said = await (await self.command(*arguments)).ended()
        assert code != 0, said
        return said

    async def stop(self) -> None:
        for task in self._tasks.values():
            await _cancelled(task)
        for router in self.routers:
            await router.stop()
        for node in tuple(self.nodes.values()):
            await node.stop()


@dataclass(slots=True)
class History:
    """What was done to one document by its only writer: every step is an upsert with its number or a delete."""

    steps: list[bool] = field(default_factory=list)
    """True: an upsert."""
    acked: int = -1
    """The last step that was acknowledged."""

    def allows(self, since: int, seen: int | None) -> bool:
        """Whether a read that began when `since` was the last acknowledged step may see that step, or nothing."""
        if seen is not None:
            return since <= seen < len(self.steps) and self.steps[seen]
        return since < 0 or not all(self.steps[since:])


class Traffic:
    """Writers and quorum searches over all routers, until stopped; `problems` names every answer that was wrong."""

    def __init__(self, routers: list[LevelRouter], documents: int = DOCUMENTS) -> None:
        self._routers = routers
        self.histories = {f"d{number}": History() for number in range(documents)}
        self.problems: list[str] = []
        self.acknowledged = self.searched = self.failed = 0
        self._stopping = False
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Traffic:
        self._tasks = [asyncio.create_task(self._write(name)) for name in self.histories]
        self._tasks += [asyncio.create_task(self._search(number)) for number in range(4)]
        await self.passed(20)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stopping = True
        await asyncio.gather(*self._tasks)

    async def passed(self, more: int) -> None:
        """Wait until so many further writes were acknowledged and searches answered."""
        writes, searches = self.acknowledged + more, self.searched + more
        async with asyncio.timeout(COMMAND_S):
            while self.acknowledged < writes or self.searched < searches:  # noqa: ASYNC110  # counts have no event
                await asyncio.sleep(0.01)

    async def _write(self, name: str) -> None:
        history = self.histories[name]
        while not self._stopping:
            step = len(history.steps)
            history.steps.append(step % 5 != 4)
            stub = self._routers[step % len(self._routers)].stub
            try:
                if history.steps[step]:
                    request = router_pb2.UpsertRequest(collection=COLLECTION, documents=[document(name, step)])
                    written = (await stub.Upsert(request, timeout=CALL_S)).documents[0]
                else:
                    delete = router_pb2.DeleteRequest(collection=COLLECTION, document_ids=[name])
                    written = (await stub.Delete(delete, timeout=CALL_S)).documents[0]
            except grpc.aio.AioRpcError as error:
                self._failed(f"write of {name}: {error.code().name} {error.details()}")
                continue
            if written.outcome == router_pb2.WRITE_OUTCOME_ACKNOWLEDGED:
                history.acked = step
                self.acknowledged += 1
            else:
                self._failed(f"write of {name}: {written.reason}")

    async def _search(self, number: int) -> None:
        while not self._stopping:
            self.check(await self.seen(number))

    async def seen(self, number: int) -> tuple[dict[str, int], dict[str, int]] | None:
        """(the last acknowledged step of each document before, what a search of all of them found)"""
        since = {name: history.acked for name, history in self.histories.items()}
        request = router_pb2.SearchRequest(
            collection=COLLECTION,
            queries=[router_pb2.Query(vector=passage_pb2.Vector(dim=DIM, data=direction(0).tobytes()))],
            k=10 * len(self.histories),
            exact=True,
        )
        try:
            reply = await self._routers[number % len(self._routers)].stub.Search(request, timeout=CALL_S)
        except grpc.aio.AioRpcError as error:
            self._failed(f"search: {error.code().name} {error.details()}")
            return None
        found: dict[str, int] = {}
        for hit in reply.results[0].hits:
            name, step = hit.passage.text.split()
            found[name] = int(step)
        return since, found

    def check(self, seen: tuple[dict[str, int], dict[str, int]] | None) -> None:
        if seen is None:
            return
        since, found = seen
        self.searched += 1
        for name, history in self.histories.items():
            if not history.allows(since[name], found.get(name)):
                self.problems.append(f"{name}: step {since[name]} was acknowledged, then {found.get(name)} was read")

    def _failed(self, why: str) -> None:
        self.failed += 1
        self.last_failure = why

    last_failure = ""


def direction(number: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Unit vectors, of which none is far from another."""
    vector = np.ones(DIM, dtype="<f4")
    vector[number % DIM] += 0.5
    unit: np.ndarray[Any, np.dtype[np.float32]] = (vector / np.linalg.norm(vector)).astype("<f4")
    return unit


def document(name: str, step: int) -> router_pb2.NewDocument:
    vector = passage_pb2.Vector(dim=DIM, data=direction(step).tobytes())
    return router_pb2.NewDocument(
        document_id=name, passages=[router_pb2.NewPassage(text=f"{name} {step}", vector=vector)]
    )


def last_line(said: str) -> dict[str, Any]:
    """The result of a command."""
    found: dict[str, Any] = json.loads(said.strip().splitlines()[-1])
    return found


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
