"""What every record store promises: compare and swap, refusals that say what to do, a watch that misses nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import replace
from pathlib import Path

import pytest

from services.runtime.config import ConfigError
from services.runtime.topology import ProposedMembers, ShardState, ShardTopology, Topology, Voter
from tests.contract.record_stores import COLLECTION, KINDS, Opened

WAIT_S = 20.0
NEW = Voter("ab" * 16, "n3")


@pytest.fixture(params=sorted(KINDS))
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> AbstractAsyncContextManager[Opened]:
    return KINDS[request.param](tmp_path)


async def record_of(stores: Opened) -> ShardTopology:
    return (await stores.one.read()).collections[COLLECTION].shards[0]


def with_learner(record: ShardTopology, learner: Voter = NEW) -> ShardTopology:
    return replace(record, epoch=record.epoch + 1, learners=(learner,))


def replacing(record: ShardTopology) -> ShardTopology:
    """FROZEN: the first voter goes, the learner follows it."""
    following = ProposedMembers((NEW, *record.voters[1:]), (), record.read_quorum, record.write_quorum)
    return replace(record, epoch=record.epoch + 1, state=ShardState.FROZEN, proposed=following, dead=())


def replaced(record: ShardTopology) -> ShardTopology:
    """ACTIVE again after `replacing`."""
    assert record.proposed is not None
    gone = record.voters[0].replica_id
    return ShardTopology(
        record.epoch + 1, record.proposed.voters, record.read_quorum, record.write_quorum, removed=(gone,)
    )


async def test_what_was_swapped_is_read_by_everyone(opened: AbstractAsyncContextManager[Opened]) -> None:
    async with opened as stores:
        first = await record_of(stores)
        assert (first.state, first.learners, first.proposed, first.dead, first.removed) == ("active", (), None, (), ())
        learning = with_learner(first)
        frozen = replace(replacing(learning), dead=(first.voters[0].replica_id,))
        for before, after in ((first, learning), (learning, frozen), (frozen, replaced(frozen))):
            assert await stores.one.swap(COLLECTION, 0, before.epoch, after) == after
            for store in (stores.one, stores.other):
                shards = (await store.read()).collections[COLLECTION].shards
                assert shards[0] == after
                assert shards[1].epoch == 1, "the other shard is left alone"


async def test_of_two_controllers_one_wins_and_the_other_is_told_what_is_stored(
    opened: AbstractAsyncContextManager[Opened],
) -> None:
    async with opened as stores:
        first = await record_of(stores)
        mine, theirs = with_learner(first), with_learner(first, Voter("cd" * 16, "n3"))
        answers = await asyncio.gather(
            stores.one.swap(COLLECTION, 0, first.epoch, mine), stores.other.swap(COLLECTION, 0, first.epoch, theirs)
        )
        stored = await record_of(stores)
        assert list(answers) == [stored, stored]
        assert stored in (mine, theirs)
        assert await stores.other.swap(COLLECTION, 0, first.epoch, theirs) == stored, "a late attempt changes nothing"


async def test_repeating_a_swap_after_an_answer_was_lost_is_harmless(
    opened: AbstractAsyncContextManager[Opened],
) -> None:
    async with opened as stores:
        first = await record_of(stores)
        assert await stores.one.swap(COLLECTION, 0, first.epoch, with_learner(first)) == with_learner(first)
        assert await stores.one.swap(COLLECTION, 0, first.epoch, with_learner(first)) == with_learner(first)


def _refusals() -> list[tuple[str, str]]:
    return [
        ("no epoch step", r"epoch 1 does not follow 1; read the record again"),
        ("weak", r"R=1 \+ W=2 is not above N=3.*raise R or W"),
        ("R above N", r"R=4 is not between 1 and the 3 voters; change R or the voters"),
        ("W above N", r"W=4 is not between 1 and the 3 voters; change W or the voters"),
        ("no voters", r"needs at least one voter"),
        ("two on one node", r"two voters on one node, n3; a node's failure must cost one vote"),
        ("id twice", r"replica ids must be distinct"),
        ("no id", r"replica ids must be distinct and 32 hex digits"),
        ("node unknown", r"add \[nodes\.elsewhere\] to .*mesh\.toml"),
        ("forgotten", r"is forgotten; name it as a member or as removed"),
        ("frozen for nothing", r"frozen record names the proposed members"),
        ("dead while active", r"only a frozen record names dead voters"),
        ("dead stranger", r"is called dead but is no voter"),
    ]


def _refused(name: str, stored: ShardTopology) -> ShardTopology:
    after = replace(stored, epoch=stored.epoch + 1)
    return {
        "no epoch step": lambda: stored,
        "weak": lambda: replace(after, read_quorum=1),
        "R above N": lambda: replace(after, read_quorum=4),
        "W above N": lambda: replace(after, write_quorum=4),
        "no voters": lambda: replace(after, voters=()),
        "two on one node": lambda: replace(after, voters=(*after.voters, NEW, Voter("cd" * 16, "n3"))),
        "id twice": lambda: replace(after, learners=(after.voters[0],)),
        "no id": lambda: replace(after, learners=(Voter("n3", "n3"),)),
        "node unknown": lambda: replace(after, learners=(Voter("cd" * 16, "elsewhere"),)),
        "forgotten": lambda: replace(after, voters=(NEW, *after.voters[1:])),
        "frozen for nothing": lambda: replace(after, state=ShardState.FROZEN),
        "dead while active": lambda: replace(after, dead=(after.voters[0].replica_id,)),
        "dead stranger": lambda: replace(replacing(stored), dead=(NEW.replica_id,)),
    }[name]()


@pytest.mark.parametrize(("name", "message"), _refusals(), ids=[name for name, _ in _refusals()])
async def test_a_record_that_nobody_may_follow_is_refused(
    opened: AbstractAsyncContextManager[Opened], name: str, message: str
) -> None:
    async with opened as stores:
        first = await record_of(stores)
        with pytest.raises(ConfigError, match=message):
            await stores.one.swap(COLLECTION, 0, first.epoch, _refused(name, first))
        assert await record_of(stores) == first


async def test_an_id_that_left_does_not_come_back(opened: AbstractAsyncContextManager[Opened]) -> None:
    async with opened as stores:
        first = await record_of(stores)
        learning = with_learner(first)
        frozen = replacing(learning)
        after = replaced(frozen)
        for before, now in ((first, learning), (learning, frozen), (frozen, after)):
            await stores.one.swap(COLLECTION, 0, before.epoch, now)
        back = replace(after, epoch=after.epoch + 1, learners=(first.voters[0],))
        with pytest.raises(ConfigError, match=r"was removed and may not come back; add a replica under a new id"):
            await stores.one.swap(COLLECTION, 0, after.epoch, back)
        with pytest.raises(ConfigError, match="is forgotten"):
            await stores.one.swap(COLLECTION, 0, after.epoch, replace(back, learners=(), removed=()))
        assert await record_of(stores) == after


async def test_unknown_shards_are_named(opened: AbstractAsyncContextManager[Opened]) -> None:
    async with opened as stores:
        first = await record_of(stores)
        with pytest.raises(ConfigError, match=r"collection 'nothing' is not in the record; it has docs"):
            await stores.one.swap("nothing", 0, 1, with_learner(first))
        with pytest.raises(ConfigError, match=r"has no shard 7; its shards are 0 to 1"):
            await stores.one.swap(COLLECTION, 7, 1, with_learner(first))


async def _next(changes: AsyncIterator[Topology]) -> ShardTopology:
    async with asyncio.timeout(WAIT_S):
        return (await anext(changes)).collections[COLLECTION].shards[0]


async def test_a_watch_begins_with_what_is_there_and_ends_with_the_last_change(
    opened: AbstractAsyncContextManager[Opened],
) -> None:
    async with opened as stores, aclosing(stores.one.watch()) as changes:
        first = await record_of(stores)
        assert await _next(changes) == first
        learning = with_learner(first)
        await stores.other.swap(COLLECTION, 0, first.epoch, learning)
        assert await _next(changes) == learning
        frozen = replacing(learning)
        await stores.other.swap(COLLECTION, 0, learning.epoch, frozen)
        await stores.other.swap(COLLECTION, 0, frozen.epoch, replaced(frozen))
        while (found := await _next(changes)) != replaced(frozen):
            assert found == frozen


@pytest.mark.parametrize("left", [b"", b'{"format": 1, "collections": {"docs": {"sha'], ids=["nothing", "half"])
async def test_a_record_that_cannot_be_read_is_refused_and_a_watch_goes_on(
    opened: AbstractAsyncContextManager[Opened], left: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    async with opened as stores, aclosing(stores.one.watch()) as changes:
        first = await _next(changes)
        whole = stores.config.topology_path.read_bytes()
        stores.spoil(left)
        for store in (stores.one, stores.other):
            with pytest.raises(ConfigError, match=r"is damaged .* restore it from a backup"):
                await store.read()
        with pytest.raises(ConfigError, match="is damaged"):
            await stores.other.swap(COLLECTION, 0, first.epoch, with_learner(first))
        waiting = asyncio.ensure_future(_next(changes))
        await _logged(capsys, "cannot be followed")
        assert not waiting.done()
        stores.spoil(whole)
        learning = with_learner(first)
        await stores.other.swap(COLLECTION, 0, first.epoch, learning)
        assert await waiting == learning


async def _logged(capsys: pytest.CaptureFixture[str], words: str) -> None:
    for _ in range(int(WAIT_S / 0.005)):
        if words in capsys.readouterr().err:
            return
        await asyncio.sleep(0.005)
    pytest.fail(f"{words!r} was not logged")
