"""A replica whose rows, names or operations were damaged is whole again by itself, with a peer and nobody's help."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ostraka.v1 import shard_pb2
from services.shard.engine import DATABASE_FILE, Engine
from services.shard.scrub import Scrub
from services.shard.store import Database
from tests.integration.shard_nodes import (
    ShardNode,
    eventually,
    gossip,
    nodes_config,
    now,
    search_request,
    write_request,
)
from tests.unit.shard_rows import batch

TIMEOUT_S = 10.0
DAMAGES = {
    "payload": "UPDATE passages SET payload = CAST('wrong' AS BLOB) WHERE document = 'a' AND ordinal = 0",
    "name": "UPDATE passages SET document = 'x' WHERE document = 'a' AND ordinal = 1",
    "row gone": "DELETE FROM passages WHERE document = 'a' AND ordinal = 1",
    "version of a head": "UPDATE heads SET hlc = hlc + 1000 WHERE document = 'a'",
    "head of a tombstone": "UPDATE heads SET n = 1 WHERE document = 'gone'",
    "operation": "UPDATE ops SET documents = '[\"b\"]'",
    "live bits": "UPDATE live SET bits = zeroblob(1024)",
    "applied set": "UPDATE applied SET hi = hi + 7",
}


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[tuple[ShardNode, ShardNode]]:
    config = nodes_config(tmp_path)
    one, two = [await ShardNode(config, name).start() for name in ("n1", "n2")]
    yield one, two
    await one.stop()
    await two.stop()


@pytest.mark.parametrize("kind", DAMAGES)
async def test_damage_is_found_by_a_check_and_mended_by_the_peer(pair: tuple[ShardNode, ShardNode], kind: str) -> None:
    one, two = pair
    gossip(one, two)
    entry = batch(1, [("a", 2), ("b", 1), ("gone", 0)])
    await one.stub.Write(write_request(entry, now(entry)), timeout=TIMEOUT_S)
    await eventually(lambda: entry.gtid in two.applied)
    engine, peer = _engine(one), _engine(two)
    database = Database(engine.directory / DATABASE_FILE, writable=True)
    database.rows(DAMAGES[kind])
    database.close()
    assert one.replica.upkeep is not None
    await asyncio.to_thread(one.replica.upkeep.stop)  # its own check comes at its own time
    scrub = Scrub(engine)
    await asyncio.to_thread(scrub.run_once)
    assert engine.ledger.found
    await eventually(lambda: not engine.damaged and not engine.ledger.ops)
    before = engine.ledger.found
    await asyncio.to_thread(scrub.run_once)
    assert engine.ledger.found == before
    assert (engine.view.applied, engine.view.digest) == (peer.view.applied, peer.view.digest)
    (leg,) = (await one.stub.Search(search_request(entry, k=9), timeout=TIMEOUT_S)).shards
    assert leg.status == shard_pb2.REPLICA_STATUS_OK
    payloads = {(hit.document_id, hit.ordinal): hit.payload for hit in leg.results[0].hits}
    assert payloads == {(row.document_id, row.ordinal): row.payload for row in entry.passages}


def _engine(node: ShardNode) -> Engine:
    assert node.replica.engine is not None
    return node.replica.engine
