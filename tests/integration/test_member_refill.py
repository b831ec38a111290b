"""A lost disk is refilled where few documents were written by very many batches: in bundles that a peer sends soon."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from services.quorum import replica as core_module
from services.quorum.clock import Version, pack
from services.quorum.gtid import Gtid
from services.quorum.rows import HeadRow, PullBundle, WriteBatch
from services.shard.engine import Engine
from tests.integration.member_nodes import MemberMesh, last_line
from tests.unit.shard_rows import passage

BATCHES = 300
DOCUMENTS = 8
OPS_MAX = 64


def engine_on(mesh: MemberMesh, node: str) -> Engine:
    engine = mesh.nodes[node].replica.engine
    assert engine is not None
    return engine


async def test_few_documents_of_many_batches_come_in_several_bundles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(core_module, "OPS_MAX", OPS_MAX)
    mesh = await MemberMesh(tmp_path).start()
    try:
        voters = mesh.record.voters
        for seq in range(1, BATCHES + 1):
            at = Version(pack(int(time.time() * 1_000), seq), 9)
            name = f"doc-{seq % DOCUMENTS}"
            batch = WriteBatch(Gtid(9, seq), at, (passage(name, 0, at),), (HeadRow(name, 1, at),))
            written = [engine_on(mesh, voter.node).write(batch, mesh.record.epoch) for voter in voters]
            for future in written:
                assert future is not None
                assert (await asyncio.wrap_future(future)).status.name == "OK"
        lost = voters[0]
        await mesh.stop_node(lost.node)
        mesh.lose_disk(lost.node)
        await mesh.start_node(lost.node)
        sizes: list[int] = []
        merge = Engine.merge

        def noted(engine: Engine, bundle: PullBundle, **options: bool) -> object:
            sizes.append(len(bundle.covers))
            return merge(engine, bundle, **options)

        monkeypatch.setattr(Engine, "merge", noted)
        done = last_line(await mesh.done("replace", lost.replica_id, "--node", lost.node, "--dead"))
        assert done["state"] == "active"
        assert max(sizes) <= OPS_MAX + DOCUMENTS, "what a document shows is covered with it"
        assert len(sizes) >= BATCHES // (OPS_MAX + DOCUMENTS)
        refilled, other = (engine_on(mesh, node).view for node in (lost.node, voters[1].node))
        assert len(other.applied) >= BATCHES
        assert refilled.applied.issuperset(other.applied)
        assert refilled.digest_bytes == other.digest_bytes
    finally:
        await mesh.stop()
