"""Members change while documents are written and searched at QUORUM: nothing acknowledged is lost, nothing is stale."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.integration.member_nodes import MemberMesh, Traffic, last_line
from tests.integration.shard_nodes import COLLECTION, eventually

SHARD = ("-c", COLLECTION, "-s", "0")


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[MemberMesh]:
    made = await MemberMesh(tmp_path).start()
    try:
        yield made
    finally:
        await made.stop()


async def judge(mesh: MemberMesh, traffic: Traffic) -> None:
    """After the traffic: every router agrees with every acknowledged write, and all voters with each other."""
    for number in range(len(mesh.routers)):
        traffic.check(await traffic.seen(number))
    assert not traffic.problems, traffic.problems[:5]
    voters = {voter.node: voter.replica_id for voter in mesh.record.voters}
    nodes = [mesh.nodes[name] for name in voters]
    assert {name: mesh.nodes[name].replica.replica_id for name in voters} == voters
    await eventually(lambda: len({node.applied for node in nodes}) == 1)
    assert len({node.replica.engine.view.digest_bytes for node in nodes if node.replica.engine}) == 1


async def test_a_voter_is_added(mesh: MemberMesh) -> None:
    async with Traffic(mesh.routers) as traffic:
        done = last_line(await mesh.done("add", "n4", *SHARD))
        await traffic.passed(100)
    assert (len(done["voters"]), done["read_quorum"], done["write_quorum"], done["state"]) == (4, 2, 3, "active")
    await judge(mesh, traffic)


async def test_a_voter_is_removed_and_its_directory_is_refused_ever_after(mesh: MemberMesh) -> None:
    gone = mesh.replica_on("n2")
    async with Traffic(mesh.routers) as traffic:
        done = last_line(await mesh.done("remove", gone))
        await traffic.passed(100)
    assert (len(done["voters"]), done["read_quorum"], done["write_quorum"]) == (2, 2, 2)
    await judge(mesh, traffic)
    assert not mesh.nodes["n2"].node.replicas, "it was told to stop"


async def test_a_living_voter_is_replaced(mesh: MemberMesh) -> None:
    gone = mesh.replica_on("n1")
    async with Traffic(mesh.routers) as traffic:
        done = last_line(await mesh.done("replace", gone, "--node", "n4"))
        await traffic.passed(100)
    assert gone not in done["voters"]
    assert mesh.record.removed == (gone,)
    await judge(mesh, traffic)
    assert not mesh.nodes["n1"].node.replicas


async def test_a_voter_that_lost_its_disk_is_replaced_on_its_node(mesh: MemberMesh) -> None:
    gone = mesh.replica_on("n1")
    async with Traffic(mesh.routers) as traffic:
        await mesh.stop_node("n1")
        mesh.lose_disk("n1")
        node = await mesh.start_node("n1")
        assert "lost its disk" in node.replica.reason
        said = await mesh.refused("replace", gone, "--node", "n1")
        assert "say --dead when its disk is lost" in said
        done = last_line(await mesh.done("replace", gone, "--node", "n1", "--dead"))
        await traffic.passed(100)
    assert gone not in done["voters"]
    await judge(mesh, traffic)
    assert mesh.nodes["n1"].replica.replica_id in done["voters"]
