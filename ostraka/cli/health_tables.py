"""Tables of what replicas measure about themselves: index health, and memory by part."""

from __future__ import annotations

from collections.abc import Iterator

from ostraka.cli.output import print_table
from ostraka.mesh_status import MeshStatus, ReplicaState

MIB = 1024 * 1024
NONE = "-"
"""Not measured yet, or nothing to measure."""


def print_health(mesh: MeshStatus) -> None:
    """All tables; nothing without a reachable replica."""
    replicas = sorted(_replicas(mesh), key=lambda pair: (pair[1].collection, pair[1].shard, pair[0]))
    if not replicas:
        return
    print_table(
        "Index",
        ("collection", "shard", "node", "rows", "dead", "delta", "segments", "kinds", "codec", "builds", "building"),
        [index_row(node, replica) for node, replica in replicas],
    )
    print_table(
        "Health",
        ("collection", "shard", "node", "recall", "imbalance", "drift", "words' age", "scrubbed", "damage"),
        [health_row(node, replica) for node, replica in replicas],
    )
    parts = list(dict.fromkeys(part.part for _, replica in replicas for part in replica.memory))
    if parts:
        mapped = {part.part for _, replica in replicas for part in replica.memory if part.mapped}
        columns = [f"{part} (mapped)" if part in mapped else part for part in parts]
        print_table(
            "Memory in MiB", ("collection", "shard", "node", *columns), [memory_row(n, r, parts) for n, r in replicas]
        )
    nodes = [(node.node, f"{node.resident_bytes / MIB:.1f}") for node in mesh.nodes if node.reachable]
    print_table("Resident memory", ("node", "MiB"), nodes)


def index_row(node: str, replica: ReplicaState) -> tuple[object, ...]:
    """What one replica's index consists of."""
    health = replica.health
    kinds = dict.fromkeys(segment.index_kind for segment in replica.segments)
    return (
        replica.collection,
        replica.shard,
        node,
        replica.rows_live,
        replica.rows_dead,
        replica.delta_rows,
        len(replica.segments),
        ", ".join(kinds) or NONE,
        f"generation {health.codec_generation}" if health.codec_generation else NONE,
        health.builds,
        health.building or NONE,
    )


def health_row(node: str, replica: ReplicaState) -> tuple[object, ...]:
    """What one replica measured of itself."""
    health = replica.health
    return (
        replica.collection,
        replica.shard,
        node,
        f"{health.recall_canary:.3f} over {health.canary_queries}" if health.canary_queries else NONE,
        _figure(max((segment.list_imbalance for segment in replica.segments), default=0.0)),
        _figure(health.drift),
        age(replica.lexical_statistics_age_ms),
        age(health.scrubbed_age_ms),
        health.damage_found,
    )


def memory_row(node: str, replica: ReplicaState, parts: list[str]) -> tuple[object, ...]:
    """One replica's line, a cell for each of `parts`."""
    held = {part.part: part.bytes for part in replica.memory}
    return (replica.collection, replica.shard, node, *(f"{held.get(part, 0) / MIB:.1f}" for part in parts))


def age(milliseconds: int) -> str:
    """A duration in its largest unit."""
    seconds = milliseconds / 1_000
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} s" if milliseconds else NONE


def _figure(value: float) -> str:
    return f"{value:.2f}" if value else NONE


def _replicas(mesh: MeshStatus) -> Iterator[tuple[str, ReplicaState]]:
    for node in mesh.nodes:
        for replica in node.replicas:
            yield node.node, replica
