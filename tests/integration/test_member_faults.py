"""Changes of members that meet faults: a killed controller, routers and replicas that know an older record, a shard
that stays frozen, directories that come back."""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import grpc
import pytest

from ostraka.v1 import passage_pb2, router_pb2, shard_pb2, shard_pb2_grpc
from services.runtime.channel import open_channel
from services.runtime.config import ConfigError
from services.runtime.tls import Role
from services.runtime.topology import ProposedMembers, ShardState
from services.runtime.topology_file import MARKER, REMOVED, replica_problem
from tests.integration.member_nodes import CALL_S, MemberMesh, Traffic, direction, document, last_line
from tests.integration.shard_nodes import COLLECTION, eventually
from tests.unit.shard_rows import DIM

SHARD = ("-c", COLLECTION, "-s", "0")
ONE, SESSION, QUORUM = (
    passage_pb2.CONSISTENCY_LEVEL_ONE,
    passage_pb2.CONSISTENCY_LEVEL_SESSION,
    passage_pb2.CONSISTENCY_LEVEL_QUORUM,
)


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[MemberMesh]:
    made = await MemberMesh(tmp_path).start()
    try:
        yield made
    finally:
        await made.stop()


@pytest.fixture
async def controller(mesh: MemberMesh) -> AsyncIterator[dict[str, shard_pb2_grpc.ShardServiceAsyncStub]]:
    """Stubs with the `admin` certificate, by node."""
    channels = {
        name: open_channel(mesh.config, node.address, server_role=Role.SHARD, identity="admin")
        for name, node in mesh.nodes.items()
    }
    yield {name: shard_pb2_grpc.ShardServiceStub(channel) for name, channel in channels.items()}
    for channel in channels.values():
        await channel.close()


def frozen_for(mesh: MemberMesh, *, without: str) -> tuple[ShardState, ProposedMembers]:
    record = mesh.record
    staying = tuple(voter for voter in record.voters if voter.node != without)
    return ShardState.FROZEN, ProposedMembers(staying, record.learners, 2, 2)


async def freeze(mesh: MemberMesh, *, without: str) -> int:
    """A controller wrote FROZEN and died. Returns the epoch."""
    record = mesh.record
    state, proposed = frozen_for(mesh, without=without)
    written = replace(record, epoch=record.epoch + 1, state=state, proposed=proposed)
    assert await mesh.store.swap(COLLECTION, 0, record.epoch, written) == written
    return written.epoch


async def write(mesh: MemberMesh, name: str, step: int, timeout_s: float = CALL_S) -> router_pb2.DocumentWrite:
    request = router_pb2.UpsertRequest(collection=COLLECTION, documents=[document(name, step)])
    return (await mesh.routers[0].stub.Upsert(request, timeout=timeout_s)).documents[0]


async def search(
    mesh: MemberMesh, level: passage_pb2.ConsistencyLevel.ValueType, timeout_s: float = CALL_S, router: int = 0
) -> list[str]:
    request = router_pb2.SearchRequest(
        collection=COLLECTION,
        queries=[router_pb2.Query(vector=passage_pb2.Vector(dim=DIM, data=direction(0).tobytes()))],
        k=10,
        exact=True,
        consistency=level,
    )
    reply = await mesh.routers[router].stub.Search(request, timeout=timeout_s)
    return sorted(hit.passage.text for hit in reply.results[0].hits)


async def test_a_controller_is_killed_while_the_shard_is_frozen_and_another_ends_its_change(mesh: MemberMesh) -> None:
    held, gone = threading.Event(), mesh.replica_on("n1")
    async with Traffic(mesh.routers) as traffic:
        began = await mesh.command("replace", gone, "--node", "n4")
        await eventually_long(lambda: bool(mesh.record.learners))
        # No fence is answered from now on, so the change stands still in the middle.
        for name in ("n1", "n2", "n3"):
            engine = mesh.nodes[name].replica.engine
            assert engine is not None
            engine._writer.run(held.wait)
        try:
            await eventually_long(lambda: mesh.record.state is ShardState.FROZEN)
            await began.killed()
        finally:
            held.set()
        assert mesh.record.state is ShardState.FROZEN
        assert "frozen" in await mesh.done("list")
        done = last_line(await mesh.done("resume", *SHARD))
        await traffic.passed(100)
    assert done["state"] == "active"
    assert gone not in done["voters"]
    for number in (0, 1):
        traffic.check(await traffic.seen(number))
    assert not traffic.problems, traffic.problems[:5]
    again = last_line(await mesh.done("resume", *SHARD))
    assert again["epoch"] == done["epoch"], "nothing is under way"


async def test_a_change_that_was_left_can_be_given_up(mesh: MemberMesh) -> None:
    before = mesh.record
    await write(mesh, "a", 1)
    await freeze(mesh, without="n1")
    assert "resume or abort it first" in await mesh.refused("remove", mesh.replica_on("n2"))
    done = last_line(await mesh.done("abort", *SHARD))
    assert set(done["voters"]) == {voter.replica_id for voter in before.voters}
    assert (await write(mesh, "a", 2)).outcome == router_pb2.WRITE_OUTCOME_ACKNOWLEDGED
    assert await search(mesh, QUORUM) == ["a 2"]
    assert "nothing to abort" in await mesh.refused("abort", *SHARD)


async def test_a_frozen_shard_answers_below_quorum_and_holds_the_rest(
    mesh: MemberMesh, controller: dict[str, shard_pb2_grpc.ShardServiceAsyncStub]
) -> None:
    await write(mesh, "a", 1)
    epoch = await freeze(mesh, without="n1")
    voters = {voter.node: voter.replica_id for voter in mesh.record.voters}
    for node, replica_id in voters.items():
        fence = shard_pb2.FenceRequest(epoch=epoch, collection=COLLECTION, shard=0, replica=replica_id)
        assert (await controller[node].Fence(fence, timeout=CALL_S)).status == shard_pb2.REPLICA_STATUS_OK
        for asked in (1, epoch):
            summary = shard_pb2.SummaryRequest(epoch=asked, collection=COLLECTION, shards=[0])
            (told,) = (await controller[node].Summary(summary, timeout=CALL_S)).summaries
            stale = shard_pb2.REPLICA_STATUS_STALE_EPOCH if asked == 1 else shard_pb2.REPLICA_STATUS_STALE_TOPOLOGY
            assert told.status == stale
        cover = shard_pb2.CoverRequest(epoch=epoch, collection=COLLECTION, shard=0)
        assert (await controller[node].Cover(cover, timeout=CALL_S)).status == shard_pb2.REPLICA_STATUS_STALE_TOPOLOGY
        find = shard_pb2.FindKeysRequest(
            epoch=epoch, collection=COLLECTION, keys=[shard_pb2.IdempotencyKey(document_id="a", key="k")]
        )
        assert (await controller[node].FindKeys(find, timeout=CALL_S)).status == shard_pb2.REPLICA_STATUS_STALE_TOPOLOGY
    for level in (ONE, SESSION):
        assert await search(mesh, level) == ["a 1"]
    # Peers still exchange what they have: everybody gets what one alone has applied.
    await eventually(lambda: len({mesh.nodes[name].applied for name in voters}) == 1)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await search(mesh, QUORUM, timeout_s=1.0)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "members are being changed" in str(caught.value.details())
    assert "ostraka replica resume" in str(caught.value.details())
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await write(mesh, "a", 2, timeout_s=1.0)
    assert "members are being changed" in str(caught.value.details())
    waiting = [asyncio.create_task(search(mesh, QUORUM)), asyncio.create_task(write(mesh, "b", 1))]
    await mesh.done("resume", *SHARD)
    assert (await waiting[1]).outcome == router_pb2.WRITE_OUTCOME_ACKNOWLEDGED  # type: ignore[attr-defined]
    assert "a 1" in await waiting[0]  # type: ignore[operator]


async def test_a_fence_is_durable_and_holds_until_a_newer_record(
    mesh: MemberMesh, controller: dict[str, shard_pb2_grpc.ShardServiceAsyncStub]
) -> None:
    await write(mesh, "a", 1)
    stub, mine = controller["n1"], mesh.replica_on("n1")
    fence = shard_pb2.FenceRequest(epoch=5, collection=COLLECTION, shard=0, replica=mine)
    told = await stub.Fence(fence, timeout=CALL_S)
    assert (told.status, told.epoch, told.replica) == (shard_pb2.REPLICA_STATUS_OK, 5, mine)
    assert told.applied.sources, "what it holds comes with it"
    again = await stub.Fence(fence, timeout=CALL_S)
    assert again.status == shard_pb2.REPLICA_STATUS_OK
    older = await stub.Fence(
        shard_pb2.FenceRequest(epoch=4, collection=COLLECTION, shard=0, replica=mine), timeout=CALL_S
    )
    assert (older.status, older.epoch) == (shard_pb2.REPLICA_STATUS_STALE_EPOCH, 5)
    assert "read the topology record again" in older.message
    for wrong in (mesh.replica_on("n2"), ""):
        refused = await stub.Fence(
            shard_pb2.FenceRequest(epoch=6, collection=COLLECTION, shard=0, replica=wrong), timeout=CALL_S
        )
        assert refused.status == shard_pb2.REPLICA_STATUS_UNKNOWN_REPLICA
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Fence(shard_pb2.FenceRequest(collection=COLLECTION, replica=mine), timeout=CALL_S)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    await mesh.stop_node("n1")
    node = await mesh.start_node("n1")
    assert node.replica.engine is not None
    core = node.replica.engine.core
    assert (core.epoch, core.frozen, core.voting_epoch) == (5, True, 0), "the record still says epoch 1"
    assert (await write(mesh, "a", 2)).outcome == router_pb2.WRITE_OUTCOME_ACKNOWLEDGED, "by the two others"


async def test_room_for_a_replica_is_made_once_and_within_bounds(
    mesh: MemberMesh, controller: dict[str, shard_pb2_grpc.ShardServiceAsyncStub], monkeypatch: pytest.MonkeyPatch
) -> None:
    stub = controller["n4"]

    async def refused(collection: str, replica: str) -> tuple[grpc.StatusCode, str]:
        request = shard_pb2.HostReplicaRequest(collection=collection, shard=0, replica=replica)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.HostReplica(request, timeout=CALL_S)
        return caught.value.code(), str(caught.value.details())

    first = shard_pb2.HostReplicaRequest(collection=COLLECTION, shard=0, replica="ab" * 16)
    await stub.HostReplica(first, timeout=CALL_S)
    assert (mesh.config.replica_dir("n4", "ab" * 16) / MARKER).is_file()
    assert not mesh.nodes["n4"].node.replicas, "until the record names it"
    for replica in ("", "AB" * 16, "ab" * 15, "../" * 10 + "ab"):
        assert (await refused(COLLECTION, replica))[0] is grpc.StatusCode.INVALID_ARGUMENT
    assert (await refused("nothing", "cd" * 16))[0] is grpc.StatusCode.NOT_FOUND
    code, why = await refused(COLLECTION, "ab" * 16)
    assert (code, "under a new id" in why) == (grpc.StatusCode.FAILED_PRECONDITION, True)
    monkeypatch.setattr("services.shard.membership_service.UNNAMED_MAX", 1)
    code, why = await refused(COLLECTION, "cd" * 16)
    assert (code, "delete them first" in why) == (grpc.StatusCode.RESOURCE_EXHAUSTED, True)


async def test_a_replica_catches_up_to_what_its_controller_names_and_says_how_far_it_got(
    mesh: MemberMesh, controller: dict[str, shard_pb2_grpc.ShardServiceAsyncStub]
) -> None:
    await write(mesh, "a", 1)
    stub, mine = controller["n1"], mesh.replica_on("n1")
    request = shard_pb2.CatchUpRequest(collection=COLLECTION, shard=0, replica=mine, holders=["n2", "n3", "nowhere"])
    request.require.sources.add(source=201, bounds=[1, 1])
    told = await stub.CatchUp(request, timeout=CALL_S)
    assert (told.status, told.replica, told.applied) == (shard_pb2.REPLICA_STATUS_OK, mine, request.require)
    request.require.sources.add(source=7, bounds=[1, 3])
    told = await stub.CatchUp(request, timeout=2.0)
    assert told.status == shard_pb2.REPLICA_STATUS_NOT_COVERED
    assert "3 required batches did not arrive" in told.message
    assert [entry.source for entry in told.applied.sources] == [201]
    request.replica = mesh.replica_on("n2")
    assert (await stub.CatchUp(request, timeout=CALL_S)).status == shard_pb2.REPLICA_STATUS_UNKNOWN_REPLICA
    request.require.sources[0].bounds[:] = [3, 1]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.CatchUp(request, timeout=CALL_S)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_router_that_knows_an_older_record_is_refused_and_reads_it_again(mesh: MemberMesh) -> None:
    await write(mesh, "a", 1)
    for router, source in zip(mesh.routers, (201, 202), strict=True):
        mesh.unwatch(router, source)
    old = mesh.record.epoch
    await mesh.done("replace", mesh.replica_on("n1"), "--node", "n4")
    await mesh.done("replace", mesh.replica_on("n2"), "--node", "n1")
    collection = mesh.routers[0].servicer._catalogue.get(COLLECTION)
    assert collection.members[0].epoch == old, "it was not told"
    assert (await write(mesh, "a", 2)).outcome == router_pb2.WRITE_OUTCOME_ACKNOWLEDGED
    assert mesh.routers[0].servicer._catalogue.get(COLLECTION).members[0].epoch == mesh.record.epoch
    assert await search(mesh, QUORUM, router=1) == ["a 2"]
    assert mesh.routers[1].servicer._catalogue.get(COLLECTION).members[0].epoch == mesh.record.epoch


async def test_the_directory_of_a_removed_replica_is_refused_wherever_it_comes_back(mesh: MemberMesh) -> None:
    gone, before = mesh.replica_on("n2"), mesh.config.topology_path.read_bytes()
    voter = next(each for each in mesh.record.voters if each.node == "n2")
    directory = mesh.config.replica_dir("n2", gone)
    kept = mesh.path.parent / "kept"
    await write(mesh, "a", 1)
    await mesh.stop_node("n2")
    shutil.copytree(directory, kept)
    await mesh.start_node("n2")
    await mesh.done("remove", gone)
    await eventually(lambda: REMOVED in json.loads((directory / MARKER).read_bytes()))
    assert "a replica never returns under its id" in replica_problem(mesh.config, COLLECTION, 0, voter)

    # An older copy of the directory, put back: the record still knows that the id has left.
    await mesh.stop_node("n2")
    shutil.rmtree(directory)
    shutil.copytree(kept, directory)
    node = await mesh.start_node("n2")
    assert not node.node.replicas
    assert REMOVED in json.loads((directory / MARKER).read_bytes())

    # By a controller: the record and the node refuse it.
    record = mesh.record
    with pytest.raises(ConfigError, match="was removed and may not come back"):
        await mesh.store.swap(COLLECTION, 0, record.epoch, replace(record, epoch=record.epoch + 1, learners=(voter,)))
    channel = open_channel(mesh.config, node.address, server_role=Role.SHARD, identity="admin")
    async with channel:
        with pytest.raises(grpc.aio.AioRpcError, match="a replica id is used once"):
            await shard_pb2_grpc.ShardServiceStub(channel).HostReplica(
                shard_pb2.HostReplicaRequest(collection=COLLECTION, shard=0, replica=gone), timeout=CALL_S
            )

    # Even a record from a backup does not bring it back.
    await mesh.stop_node("n2")
    mesh.config.topology_path.write_bytes(before)
    node = await mesh.start_node("n2")
    assert "never returns under its id" in node.replica.reason


async def test_what_could_not_be_ended_is_refused_before_anything_is_frozen(mesh: MemberMesh) -> None:
    record = mesh.record
    taken = await mesh.refused("add", "n1", *SHARD)
    assert "has a voter of this shard already" in taken
    assert "is not in" in await mesh.refused("add", "n9", *SHARD)
    assert "no replica begins with" in await mesh.refused("remove", "ffffffffffff")
    assert "too short" in await mesh.refused("remove", "ab")
    alive = await mesh.refused("replace", mesh.replica_on("n1"), "--node", "n4", "--dead")
    assert "it is not dead" in alive
    weak = await mesh.refused("remove", mesh.replica_on("n1"), "--read-quorum", "1", "--write-quorum", "1")
    assert "is not above N=2" in weak
    await mesh.stop_node("n1")
    await mesh.stop_node("n2")
    few = await mesh.refused("remove", mesh.replica_on("n1"), "--timeout", "10")
    assert "1 of the 2 voters needed answer" in few
    assert mesh.record == record


async def test_a_learner_without_a_vote_and_its_removal(mesh: MemberMesh) -> None:
    await write(mesh, "a", 1)
    done = last_line(await mesh.done("add", "n4", *SHARD, "--learner"))
    (learner,) = done["learners"]
    assert (len(done["voters"]), done["write_quorum"]) == (3, 2)
    await eventually(lambda: mesh.nodes["n4"].applied == mesh.nodes["n1"].applied)
    rows = json.loads(await mesh.done("list"))
    assert [row["role"] for row in rows] == ["voter"] * 3 + ["learner"]
    # With one voter left of three, what the learner holds does not count.
    await mesh.stop_node("n1")
    await mesh.stop_node("n2")
    with pytest.raises(grpc.aio.AioRpcError):
        await search(mesh, QUORUM, timeout_s=2.0)
    assert await search(mesh, ONE) == ["a 1"]
    await mesh.stop_node("n3")
    assert await search(mesh, ONE) == ["a 1"], "the learner alone answers"
    for name in ("n1", "n2", "n3"):
        await mesh.start_node(name)
    done = last_line(await mesh.done("remove", learner))
    assert done["learners"] == []
    await eventually(lambda: not mesh.nodes["n4"].node.replicas)


async def eventually_long(condition: object) -> None:
    """As `eventually`, for what a process of its own does: it takes a second to start."""
    assert callable(condition)
    for _ in range(12_000):
        if condition():
            return
        await asyncio.sleep(0.005)
    pytest.fail("it did not come about")
