"""The record of a mesh on a disk, and what a node would refuse to start for."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from services.runtime import topology_file
from services.runtime.config import Config, ConfigError, parse


def mesh_config(root: Path, collections: dict[str, dict[str, int]], nodes: int = 2) -> Config:
    """A mesh whose data directory does not exist at first."""
    rows = {f"n{number}": {"address": f"127.0.0.1:{7410 + number}"} for number in range(1, nodes + 1)}
    raw = {"mesh": {"data_dir": "deep/data"}, "nodes": rows, "collections": collections}
    return parse(raw, root / "mesh.toml", {})


def mesh_problems(config: Config) -> list[str]:
    """What a node would refuse to start for."""
    try:
        topology = topology_file.load(config)
    except ConfigError as error:
        return [f"the topology is lost: {error}"]
    problems = [
        topology_file.replica_problem(config, collection, shard, voter)
        for node in config.nodes
        for collection, shard, voter in topology.replicas_of(node)
    ]
    return [problem for problem in problems if problem]


def missing_ids(config: Config, ids: set[str]) -> list[str]:
    with suppress(ConfigError):
        topology = topology_file.load(config)
        known = {voter.replica_id for node in config.nodes for _, _, voter in topology.replicas_of(node)}
        return [f"replicas are not in the topology: {sorted(ids - known)}"] if ids - known else []
    return ["the topology is lost"]
