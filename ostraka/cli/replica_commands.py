"""`replica list|add|remove|replace|resume|abort`: who votes for a shard, changed while the mesh serves."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Annotated, TypeAlias

import typer

from ostraka.cli.member_calls import MemberCalls
from ostraka.cli.member_change import ChangeError, MemberChange, Shard, is_frozen, quorums
from ostraka.cli.options import JsonOption, MeshFileOption
from ostraka.cli.output import CONSOLE, command, print_json, print_json_line, print_table
from ostraka.v1 import shard_pb2
from services.quorum.gtid import GtidSet
from services.quorum.members import ReplicaRef
from services.quorum.shard_record import Membership, ShardRecord, with_added, with_removed, with_replaced
from services.runtime.config import Config, ConfigError, load
from services.runtime.deadline import Deadline
from services.runtime.errors import MeshError
from services.runtime.record_store import RecordStore
from services.runtime.record_store_choice import open_record_store
from services.runtime.topology import ShardTopology, Topology
from services.shard.wire import set_from_wire

app = typer.Typer(name="replica", help="Who votes for a shard: shown, and changed while the mesh serves.")
PREFIX_MIN = 4
"""Digits of a replica's id that may stand for it."""
ReplicaArgument: TypeAlias = Annotated[str, typer.Argument(help="A replica's id, or how it begins.")]
NodeArgument: TypeAlias = Annotated[str, typer.Argument(help="A node of the mesh file.")]
CollectionOption: TypeAlias = Annotated[str, typer.Option("--collection", "-c", help="Which collection.")]
ShardOption: TypeAlias = Annotated[int, typer.Option("--shard", "-s", min=0, help="Which shard.")]
ReadQuorumOption: TypeAlias = Annotated[
    int, typer.Option("--read-quorum", min=0, help="R afterwards; 0: as now, if that still suffices.")
]
WriteQuorumOption: TypeAlias = Annotated[
    int,
    typer.Option("--write-quorum", min=0, help="W afterwards; 0: as now, if that still suffices."),
]
DurationOption: TypeAlias = Annotated[float, typer.Option("--timeout", min=0.001, help="Seconds for all of it.")]


@app.command("list")
@command
async def list_replicas(
    collection: Annotated[str, typer.Option("--collection", "-c", help="Only this one.")] = "",
    mesh_file: MeshFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Every shard's epoch, members and change under way, and how many batches each replica lacks."""
    config = load(mesh_file)
    store = open_record_store(config)
    topology = await _read(store)
    rows: list[dict[str, object]] = []
    async with AsyncExitStack() as stack:
        for name, known in sorted(topology.collections.items()):
            for number, record in sorted(known.shards.items()) if collection in ("", name) else ():
                calls = MemberCalls(config, stack, name, number)
                states = await calls.states(member.node for member in record.members())
                rows += _rows(Shard(name, number), record, states, calls.problems)
    await store.close()
    if as_json:
        print_json(rows)
        return
    columns = ("shard", "epoch", "state", "R", "W", "role", "node", "replica", "phase", "lacks", "message")
    print_table("Replicas", columns, [tuple(row[column] for column in columns) for row in rows])


@app.command("add")
@command
async def add(
    node: NodeArgument,
    collection: CollectionOption,
    shard: ShardOption,
    learner: Annotated[bool, typer.Option("--learner", help="Without a vote.")] = False,
    read_quorum: ReadQuorumOption = 0,
    write_quorum: WriteQuorumOption = 0,
    timeout_s: DurationOption = 3_600.0,
    mesh_file: MeshFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """A new replica on a node: it learns first, then it votes. Begun again, it goes on where it was left."""
    config = load(mesh_file)
    async with _changing(config, Shard(collection, shard), timeout_s, as_json) as change:
        record = await change.record()
        _free(config, record, node)
        successor = await change.learner_on(node)
        await change.learned(successor)
        if not learner:

            def wanted(members: Membership) -> Membership:
                read, write = quorums(members, len(members.voters) + 1, read_quorum, write_quorum)
                return with_added(members, successor, read_quorum=read, write_quorum=write)

            await change.change(wanted)
        _done(await change.record(), as_json)


@app.command("remove")
@command
async def remove(
    replica: ReplicaArgument,
    read_quorum: ReadQuorumOption = 0,
    write_quorum: WriteQuorumOption = 0,
    dead: Annotated[bool, typer.Option("--dead", help="I vouch that it will never answer again.")] = False,
    timeout_s: DurationOption = 600.0,
    mesh_file: MeshFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """A voter or learner leaves; its id never comes back, its directory may be deleted afterwards."""
    config = load(mesh_file)
    shard, left = await _find(config, replica)
    async with _changing(config, shard, timeout_s, as_json) as change:
        voters = (await change.record()).members.voters
        votes = left in voters

        def wanted(members: Membership) -> Membership:
            read, write = quorums(members, len(members.voters) - votes, read_quorum, write_quorum)
            return with_removed(members, left.replica_id, read_quorum=read, write_quorum=write)

        gone = await _vouched(config, shard, left, dead=dead) if votes else frozenset()
        _done(await change.change(wanted, gone), as_json)


@app.command("replace")
@command
async def replace(
    replica: ReplicaArgument,
    node: Annotated[str, typer.Option("--node", help="Where its successor shall be.")],
    dead: Annotated[
        bool,
        typer.Option(
            "--dead",
            help="I vouch that the voter will never answer again: its disk is lost. A voter that only cannot be "
            "reached may still serve stale reads where R is 1.",
        ),
    ] = False,
    timeout_s: DurationOption = 3_600.0,
    mesh_file: MeshFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """A new replica in a voter's place. On the voter's own node only when its disk is lost (--dead)."""
    config = load(mesh_file)
    shard, left = await _find(config, replica)
    async with _changing(config, shard, timeout_s, as_json) as change:
        record = await change.record()
        if left not in record.members.voters:
            raise ChangeError(f"{left.replica_id} is a learner; remove it, and add another")
        gone = await _vouched(config, shard, left, dead=dead)
        if node != left.node:
            _free(config, record, node)
        elif not dead:
            raise ChangeError(
                f"node {node} still hosts {left.replica_id}; name another node, or say --dead when its disk is lost"
            )
        successor = await change.learner_on(node)
        await change.learned(successor)
        done = await change.change(lambda members: with_replaced(members, left.replica_id, successor), gone)
        _done(done, as_json)


@app.command("resume")
@command
async def resume(
    collection: CollectionOption,
    shard: ShardOption,
    timeout_s: DurationOption = 60.0,
    mesh_file: MeshFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """End the change that a controller left under way, as it was meant."""
    async with _changing(load(mesh_file), Shard(collection, shard), timeout_s, as_json) as change:
        record = await change.record()
        if not is_frozen(record):
            learning = [f"{each.replica_id[:8]} on {each.node}" for each in record.members.learners]
            _say(f"nothing is under way in epoch {record.epoch}", as_json)
            if learning:
                _say(f"learners: {', '.join(learning)}; to go on with one, repeat its `add` or `replace`", as_json)
        _done(await change.resume(), as_json)


@app.command("abort")
@command
async def abort(
    collection: CollectionOption,
    shard: ShardOption,
    timeout_s: DurationOption = 60.0,
    mesh_file: MeshFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Give the change under way up: the old members serve again, ids that were to come are used up."""
    async with _changing(load(mesh_file), Shard(collection, shard), timeout_s, as_json) as change:
        _done(await change.abort(), as_json)


@asynccontextmanager
async def _changing(config: Config, shard: Shard, timeout_s: float, as_json: bool) -> AsyncIterator[MemberChange]:
    store = open_record_store(config)
    async with AsyncExitStack() as stack:
        calls = MemberCalls(config, stack, shard.collection, shard.number)
        deadline = Deadline.after_ms(timeout_s * 1_000)
        yield MemberChange(shard, store, calls, deadline, partial(_say, as_json=as_json))
    await store.close()


async def _read(store: RecordStore) -> Topology:
    try:
        return await store.read()
    except MeshError as error:
        raise ChangeError(f"the topology record cannot be read: {error.message}") from error


async def _find(config: Config, begins: str) -> tuple[Shard, ReplicaRef]:
    """Whose replica it is. Raises ConfigError when none or several ids begin so."""
    store = open_record_store(config)
    topology = await _read(store)
    await store.close()
    if len(begins) < PREFIX_MIN:
        raise ConfigError(f"{begins!r} is too short: {PREFIX_MIN} digits of a replica's id at least")
    found = [
        (Shard(name, number), ReplicaRef(member.replica_id, member.node))
        for name, known in topology.collections.items()
        for number, record in known.shards.items()
        for member in (*record.voters, *record.learners)
        if member.replica_id.startswith(begins)
    ]
    if len(found) != 1:
        many = f"{len(found)} replicas begin" if found else "no replica begins"
        raise ConfigError(f"{many} with {begins!r}; `ostraka replica list` shows them")
    return found[0]


async def _vouched(config: Config, shard: Shard, voter: ReplicaRef, *, dead: bool) -> frozenset[str]:
    """The voter's id if the caller vouches for its death. Raises ChangeError when it is seen to be alive."""
    if not dead:
        return frozenset()
    async with AsyncExitStack() as stack:
        states = await MemberCalls(config, stack, shard.collection, shard.number).states([voter.node])
    state = states.get(voter.replica_id)
    if state is not None and state.state != "FAILED":
        raise ChangeError(f"{voter.replica_id} on {voter.node} is {state.state}: it is not dead; leave --dead out")
    return frozenset({voter.replica_id})


def _free(config: Config, record: ShardRecord, node: str) -> None:
    """Raise ChangeError when the node cannot take a further replica of the shard."""
    if node not in config.nodes:
        raise ConfigError(f"[nodes.{node}] is not in {config.path}; its nodes are {', '.join(sorted(config.nodes))}")
    if any(voter.node == node for voter in record.members.voters):
        raise ChangeError(f"node {node} has a voter of this shard already; a node's failure must cost one vote")


def _rows(
    shard: Shard,
    record: ShardTopology,
    states: Mapping[str, shard_pb2.ReplicaState],
    problems: Mapping[str, str],
) -> list[dict[str, object]]:
    applied = {name: set_from_wire(state.applied, "applied") for name, state in states.items()}
    everything = GtidSet.EMPTY
    for held in applied.values():
        everything = everything.union(held)
    rows: list[dict[str, object]] = []
    for member in record.members():
        state = states.get(member.replica_id)
        voter = member in record.voters
        rows.append(
            {
                "shard": str(shard),
                "epoch": record.epoch,
                "state": record.state.value,
                "R": record.read_quorum,
                "W": record.write_quorum,
                "role": "voter" if voter else "learner" if member in record.learners else "proposed",
                "node": member.node,
                "replica": member.replica_id,
                "phase": state.state if state else "",
                "lacks": len(everything.difference(applied[member.replica_id])) if state else "",
                "message": state.message if state else problems.get(member.node, "not served there"),
            }
        )
    return rows


def _done(record: ShardRecord, as_json: bool) -> None:
    members = record.members
    voters = ", ".join(f"{voter.replica_id[:8]} on {voter.node}" for voter in members.voters)
    if as_json:
        print_json_line(
            {
                "epoch": record.epoch,
                "state": record.state.value,
                "voters": [voter.replica_id for voter in members.voters],
                "learners": [learner.replica_id for learner in members.learners],
                "read_quorum": members.read_quorum,
                "write_quorum": members.write_quorum,
            }
        )
        return
    CONSOLE.print(
        f"epoch {record.epoch}, {record.state.value}: R={members.read_quorum} W={members.write_quorum}, {voters}",
        markup=False,
    )


def _say(what: str, as_json: bool) -> None:
    if as_json:
        print_json_line({"progress": what})
    else:
        CONSOLE.print(what, markup=False)
