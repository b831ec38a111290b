"""What a coordinator makes of the topology record: epochs never go back, frozen shards are waited for, in bounds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from services.router.catalogue import Catalogue, Collection
from services.router.membership import Membership
from services.router.summary_rounds import _lanes
from services.runtime import topology_file
from services.runtime.config import Config, parse
from services.runtime.deadline import Deadline
from services.runtime.errors import Unavailable
from services.runtime.record_file import FileRecordStore
from services.runtime.topology import CollectionTopology, ProposedMembers, ShardState, ShardTopology, Topology, Voter

LEARNER = Voter("ab" * 16, "n3")


@pytest.fixture
def config(tmp_path: Path) -> Config:
    rows = {f"n{number}": {"address": f"127.0.0.1:{7410 + number}"} for number in range(4)}
    made = parse({"nodes": rows, "collections": {"docs": {"shards": 2, "replicas": 3}}}, tmp_path / "mesh.toml", {})
    topology_file.bootstrap(made)
    return made


@pytest.fixture
def catalogue(config: Config) -> Catalogue:
    return Catalogue.of(config, topology_file.load(config))


@pytest.fixture
async def membership(config: Config, catalogue: Catalogue) -> AsyncIterator[Membership]:
    store = FileRecordStore(config)
    yield Membership(catalogue, store)
    await store.close()


def stored(config: Config, shard: int = 0) -> ShardTopology:
    return topology_file.load(config).collections["docs"].shards[shard]


def swap(config: Config, record: ShardTopology) -> None:
    assert topology_file.swap_shard(config, "docs", 0, stored(config).epoch, record) == record


def frozen(record: ShardTopology) -> ShardTopology:
    same = ProposedMembers(record.voters, record.learners, record.read_quorum, record.write_quorum)
    return replace(record, epoch=record.epoch + 1, state=ShardState.FROZEN, proposed=same)


def thawed(record: ShardTopology) -> ShardTopology:
    return replace(record, epoch=record.epoch + 1, state=ShardState.ACTIVE, proposed=None)


def only(topology: Topology, record: ShardTopology) -> Topology:
    """The same record with another shard 0."""
    known = topology.collections["docs"]
    return Topology({"docs": CollectionTopology({**known.shards, 0: record}, known.buckets)})


def test_newer_epochs_are_taken_up_shard_by_shard_and_older_ones_are_not(config: Config, catalogue: Catalogue) -> None:
    first, topology = catalogue.get("docs"), topology_file.load(config)
    assert not catalogue.update(topology)
    assert catalogue.get("docs") is first, "nothing is new"
    learning = replace(stored(config), epoch=2, learners=(LEARNER,))
    assert catalogue.update(only(topology, learning))
    second = catalogue.get("docs")
    assert (second.members[0].epoch, second.members[1].epoch) == (2, 1)
    assert [learner.node for learner in second.learners[0]] == ["n3"]
    assert second.members[0].voter(LEARNER.replica_id) is None
    assert second.newer_than(first)
    assert not first.newer_than(second)
    assert catalogue.update(only(topology, frozen(learning)))
    assert catalogue.get("docs").frozen == {0}
    assert not catalogue.update(only(topology, learning)), "an epoch never goes back"
    assert catalogue.get("docs").frozen == {0}
    assert catalogue.update(only(topology, thawed(frozen(learning))))
    assert catalogue.get("docs").frozen == frozenset()


def test_a_summary_asks_each_shard_in_its_own_epoch(config: Config, catalogue: Catalogue) -> None:
    assert all(not lane.request.epochs for lane in _lanes(catalogue.get("docs")))
    catalogue.update(only(topology_file.load(config), replace(stored(config), epoch=7, learners=(LEARNER,))))
    lanes = _lanes(catalogue.get("docs"))
    asked = {
        (shard, epoch) for lane in lanes for shard, epoch in zip(lane.request.shards, lane.request.epochs, strict=False)
    }
    both = [lane for lane in lanes if len(lane.request.shards) == 2]
    assert both
    assert asked == {(0, 7), (1, 1)}
    assert "n3" not in {lane.node for lane in lanes if 0 in lane.request.shards}, "a learner has no vote"


async def test_a_frozen_shard_is_waited_for_until_the_next_record(config: Config, membership: Membership) -> None:
    first = membership.newest(Catalogue.of(config, topology_file.load(config)).get("docs"))
    swap(config, frozen(stored(config)))
    assert await membership.after(first, Deadline.after_ms(5_000)) is not None
    waiting = asyncio.ensure_future(membership.serving(first, [0, 1], Deadline.after_ms(20_000)))
    beside = await membership.serving(first, [1], Deadline.after_ms(5_000))
    assert beside.frozen == {0}, "the other shard serves"
    assert not waiting.done()
    swap(config, thawed(stored(config)))
    found = await waiting  # nobody watches: it looks by itself
    assert (found.members[0].epoch, found.frozen) == (3, frozenset())


async def test_a_shard_that_stays_frozen_is_said_to_be(config: Config, membership: Membership) -> None:
    swap(config, frozen(stored(config)))
    first = Catalogue.of(config, topology_file.load(config)).get("docs")
    with pytest.raises(Unavailable, match=r"shard 0: its members are being changed \(epoch 2 is frozen\)") as caught:
        await Membership(Catalogue({"docs": first}), None).serving(first, [0], Deadline.after_ms(1))
    assert caught.value.definite


async def test_a_suspicion_reads_the_record_again(config: Config, membership: Membership) -> None:
    first: Collection = membership.newest(Catalogue.of(config, topology_file.load(config)).get("docs"))
    assert await membership.after(first, Deadline.after_ms(5_000)) is None, "nothing has changed"
    swap(config, replace(stored(config), epoch=2, learners=(LEARNER,)))
    assert membership.newest(first) is first, "nobody watches"
    many = await asyncio.gather(*(membership.after(first, Deadline.after_ms(5_000)) for _ in range(50)))
    assert {found.members[0].epoch for found in many if found is not None} == {2}
    assert all(many)


async def test_a_record_that_cannot_be_read_leaves_the_last_one_in_force(
    config: Config, membership: Membership
) -> None:
    first = membership.newest(Catalogue.of(config, topology_file.load(config)).get("docs"))
    config.topology_path.write_bytes(b"{")
    assert await membership.after(first, Deadline.after_ms(5_000)) is None
    assert membership.newest(first) is first
