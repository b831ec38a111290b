"""A story of members: a learner is hosted and named, a voter is replaced by it and leaves for good."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from ostraka.v1 import shard_pb2
from services.runtime import topology_file
from services.runtime.config import Config
from services.runtime.topology import ProposedMembers, ShardState, ShardTopology, Voter, shard_of
from services.shard import membership_service
from tests.durability.mesh_records import mesh_config, mesh_problems, missing_ids

COMER = Voter("ab" * 16, "n3")


class MemberStory:
    """Each step is promised when its call returns."""

    def __init__(self) -> None:
        self._record: ShardTopology | None = None
        self._ids: set[str] = set()
        self._left: Voter | None = None

    def run(self, root: Path) -> Iterator[None]:
        config = self._config(root)
        topology_file.bootstrap(config)
        request = shard_pb2.HostReplicaRequest(collection="docs", shard=0, replica=COMER.replica_id)
        asyncio.run(membership_service.host(config, COMER.node, request))
        first = self._stored(config)
        self._swapped(config, replace(first, epoch=2, learners=(COMER,)))
        yield
        left, kept = first.voters
        following = ProposedMembers((COMER, kept), (), first.read_quorum, first.write_quorum)
        frozen = replace(first, epoch=3, learners=(COMER,), state=ShardState.FROZEN, proposed=following)
        self._swapped(config, frozen)
        yield
        self._swapped(
            config,
            ShardTopology(4, following.voters, first.read_quorum, first.write_quorum, removed=(left.replica_id,)),
        )
        yield
        topology_file.mark_removed(config, left.node, topology_file.load(config))
        self._left = left
        yield

    def judge(self, root: Path) -> list[str]:
        config = self._config(root)
        if found := [*mesh_problems(config), *missing_ids(config, self._ids)]:
            return found
        if self._stored(config) != self._record:
            return [f"the record is of epoch {self._stored(config).epoch} again"]
        if self._left is None:
            return []
        marker = config.replica_dir(self._left.node, self._left.replica_id) / topology_file.MARKER
        with suppress(OSError, ValueError):
            if topology_file.REMOVED in json.loads(marker.read_bytes()):
                return []
        return ["the replica that left does not say so"]

    def _swapped(self, config: Config, record: ShardTopology) -> None:
        stored = self._stored(config)
        assert topology_file.swap_shard(config, "docs", 0, stored.epoch, record) == record
        self._record = record
        self._ids = {member.replica_id for member in record.members()}

    def _stored(self, config: Config) -> ShardTopology:
        return shard_of(topology_file.load(config), "docs", 0)

    def _config(self, root: Path) -> Config:
        return mesh_config(root, {"docs": {"shards": 1, "replicas": 2}}, nodes=3)
