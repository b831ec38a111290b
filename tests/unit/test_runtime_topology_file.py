"""The topology record is made once, grows, and contradictions are refused."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from services.runtime.config import Config, ConfigError, parse
from services.runtime.topology import BUCKETS
from services.runtime.topology_file import MARKER, bootstrap, changing, load, make_replica, replica_problem

DOCS = {"docs": {"shards": 2, "replicas": 3}}


def mesh(directory: Path, nodes: int = 3, collections: Any = None) -> Config:
    rows = {f"n{i}": {"address": f"127.0.0.1:{7410 + i}"} for i in range(nodes)}
    return parse({"nodes": rows, "collections": collections or DOCS}, directory / "mesh.toml", {})


def test_bootstrap_makes_what_load_reads(tmp_path: Path) -> None:
    config = mesh(tmp_path)
    topology = bootstrap(config)
    assert load(config) == topology
    docs = topology.collections["docs"]
    assert docs.buckets == tuple(bucket % 2 for bucket in range(BUCKETS))
    for shard, members in docs.shards.items():
        assert (members.epoch, members.read_quorum, members.write_quorum) == (1, 2, 2)
        assert {voter.node for voter in members.voters} == {"n0", "n1", "n2"}
        for voter in members.voters:
            marker = config.replica_dir(voter.node, voter.replica_id) / MARKER
            assert json.loads(marker.read_bytes()) == {
                "replica_id": voter.replica_id, "collection": "docs", "shard": shard, "format": 1,
            }  # fmt: skip
            assert replica_problem(config, "docs", shard, voter) == ""
    assert [(collection, shard) for collection, shard, _ in topology.replicas_of("n1")] == [("docs", 0), ("docs", 1)]


def test_bootstrap_again_changes_nothing(tmp_path: Path) -> None:
    first = bootstrap(mesh(tmp_path))
    before = mesh(tmp_path).topology_path.read_bytes()
    assert bootstrap(mesh(tmp_path)) == first
    assert mesh(tmp_path).topology_path.read_bytes() == before


def test_replicas_are_spread_evenly(tmp_path: Path) -> None:
    collections = {"a": {"shards": 5, "replicas": 3}, "b": {"shards": 5, "replicas": 3}}
    topology = bootstrap(mesh(tmp_path, nodes=5, collections=collections))
    seats = Counter(
        voter.node
        for collection in topology.collections.values()
        for members in collection.shards.values()
        for voter in members.voters
    )
    assert set(seats.values()) == {6}


def test_a_new_collection_is_added(tmp_path: Path) -> None:
    first = bootstrap(mesh(tmp_path))
    grown = mesh(tmp_path, collections={**DOCS, "more": {"shards": 1}})
    with pytest.raises(ConfigError, match=r"lacks collection 'more'.*ostraka up"):
        load(grown)
    topology = bootstrap(grown)
    assert topology.collections["docs"] == first.collections["docs"]
    assert set(topology.collections) == {"docs", "more"}
    assert set(load(mesh(tmp_path)).collections) == {"docs"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shards": 3}, r"collections\.docs\.shards is 3 but the data has 2; set it back"),
        ({"replicas": 2, "read_quorum": 2, "write_quorum": 2}, r"replicas is 2 but the data was made with 3"),
        ({"read_quorum": 3}, r"read_quorum is 3 but the data was made with 2"),
    ],
)
def test_contradictions_are_refused(tmp_path: Path, change: dict[str, int], message: str) -> None:
    bootstrap(mesh(tmp_path))
    changed = mesh(tmp_path, collections={"docs": {**DOCS["docs"], **change}})
    with pytest.raises(ConfigError, match=message):
        load(changed)
    with pytest.raises(ConfigError, match=message):
        bootstrap(changed)


def test_a_node_that_left_is_missed(tmp_path: Path) -> None:
    bootstrap(mesh(tmp_path, nodes=3))
    rows = {name: {"address": f"127.0.0.1:{port}"} for port, name in enumerate(("n0", "n1", "new"), start=1)}
    changed = parse({"nodes": rows, "collections": DOCS}, tmp_path / "mesh.toml", {})
    with pytest.raises(ConfigError, match=r"\[nodes\.n2\] is not in .* but holds replica"):
        load(changed)


def _edit(config: Config, change: Any) -> None:
    raw = json.loads(config.topology_path.read_bytes())
    change(raw)
    config.topology_path.write_text(json.dumps(raw), encoding="utf-8")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw: raw.update(format=2), "has format 2; this version reads 1"),
        (lambda raw: raw.pop("format"), "is damaged"),
        (lambda raw: raw["collections"]["docs"]["buckets"].pop(), "the bucket table does not fit"),
        (lambda raw: raw["collections"]["docs"]["buckets"].__setitem__(0, 9), "the bucket table does not fit"),
        (lambda raw: raw["collections"]["docs"]["shards"]["0"].pop("voters"), "is damaged"),
        (lambda raw: raw["collections"]["docs"]["shards"]["0"]["voters"][0].update(replica_id="x"), "32 hex digits"),
        (lambda raw: raw["collections"]["docs"]["shards"]["0"]["voters"][0].update(node="n1"), "two voters on one"),
        (lambda raw: raw.update(collections=[1]), "is damaged"),
    ],
)
def test_damage_is_named(tmp_path: Path, change: Any, message: str) -> None:
    config = mesh(tmp_path)
    bootstrap(config)
    _edit(config, change)
    with pytest.raises(ConfigError, match=message):
        load(config)


def test_missing_and_unreadable_records(tmp_path: Path) -> None:
    config = mesh(tmp_path)
    with pytest.raises(ConfigError, match=r"does not exist; `ostraka up` makes it"):
        load(config)
    config.data_dir.mkdir()
    config.topology_path.write_bytes(b"{")
    with pytest.raises(ConfigError, match="is damaged"):
        load(config)


def test_a_replica_that_lost_its_disk_is_known(tmp_path: Path) -> None:
    config = mesh(tmp_path)
    voter = bootstrap(config).collections["docs"].shards[0].voters[0]
    marker = config.replica_dir(voter.node, voter.replica_id) / MARKER
    assert "expected" in replica_problem(config, "docs", 1, voter)
    marker.write_bytes(b"{")
    assert "cannot be read" in replica_problem(config, "docs", 0, voter)
    marker.unlink()
    assert "lost its disk" in replica_problem(config, "docs", 0, voter)


def test_replaced_replicas_keep_their_nodes_and_get_new_ids_and_a_higher_epoch(tmp_path: Path) -> None:
    config = mesh(tmp_path)
    before = bootstrap(config).collections["docs"]
    buckets = tuple(1 - bucket % 2 for bucket in range(BUCKETS))
    with changing(config) as record:
        planned = record.planned("docs", buckets, {0: 7, 1: 0})
        assert load(config).collections["docs"] == before, "a plan changes nothing"
        for shard, members in planned.shards.items():
            for voter in members.voters:
                make_replica(config, "docs", shard, voter)
        replaced = record.replace({"docs": planned})
    after = load(config).collections["docs"]
    assert after == planned
    assert after.buckets == buckets
    assert [members.epoch for members in after.shards.values()] == [8, 2]
    old = [voter for members in before.shards.values() for voter in members.voters]
    new = [voter for members in after.shards.values() for voter in members.voters]
    assert replaced == old
    assert [voter.node for voter in new] == [voter.node for voter in old]
    assert not {voter.replica_id for voter in new} & {voter.replica_id for voter in old}
    assert all(
        replica_problem(config, "docs", shard, voter) == "" for shard in (0, 1) for voter in after.shards[shard].voters
    )


def test_replicas_of_a_mesh_without_a_record_are_spread(tmp_path: Path) -> None:
    config = mesh(tmp_path)
    config.data_dir.mkdir(parents=True)
    with changing(config) as record:
        planned = record.planned("docs", (0,) * BUCKETS, {0: 3, 1: 3})
        assert record.replace({"docs": planned}) == []
    assert load(config).collections["docs"] == planned
    assert {members.epoch for members in planned.shards.values()} == {4}
    assert {voter.node for voter in planned.shards[0].voters} == {"n0", "n1", "n2"}


def test_a_record_of_an_older_version_has_no_change_under_way(tmp_path: Path) -> None:
    config = mesh(tmp_path)
    before = bootstrap(config)

    def older(raw: Any) -> None:
        for shard in raw["collections"]["docs"]["shards"].values():
            for key in ("state", "learners", "proposed", "dead", "removed"):
                del shard[key]

    _edit(config, older)
    assert load(config) == before
    assert before.collections["docs"].shards[0].state == "active"


def test_once_members_have_changed_the_record_alone_says_how_many(tmp_path: Path) -> None:
    config = mesh(tmp_path, nodes=4)
    bootstrap(config)

    def grown(raw: Any) -> None:
        shard = raw["collections"]["docs"]["shards"]["0"]
        free = {"n0", "n1", "n2", "n3"} - {voter["node"] for voter in shard["voters"]}
        shard["voters"].append({"replica_id": "ab" * 16, "node": free.pop()})
        shard.update(epoch=3, write_quorum=3)

    _edit(config, grown)
    assert len(load(config).collections["docs"].shards[0].voters) == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda shard: shard.update(read_quorum=1), r"R=1 \+ W=2 is not above N=3.*raise R or W"),
        (lambda shard: shard.update(write_quorum=4), r"W=4 is not between 1 and the 3 voters"),
        (lambda shard: shard.update(removed=[shard["voters"][0]["replica_id"]]), "was removed and may not come back"),
        (lambda shard: shard.update(state="thawed"), "is not a valid ShardState"),
        (lambda shard: shard.update(proposed={"voters": []}), "is damaged"),
    ],
)
def test_records_that_nobody_may_follow_are_refused(tmp_path: Path, change: Any, message: str) -> None:
    config = mesh(tmp_path)
    bootstrap(config)
    _edit(config, lambda raw: change(raw["collections"]["docs"]["shards"]["0"]))
    with pytest.raises(ConfigError, match=message):
        load(config)
