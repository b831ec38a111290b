"""What `ostraka status` says of a replica's health and memory, from the contract's message to the terminal."""

from __future__ import annotations

import json
from io import StringIO

import pytest
from rich.console import Console

from ostraka.cli import output
from ostraka.cli.health_tables import age, health_row, index_row, print_health
from ostraka.cli.output import to_json
from ostraka.mesh_status import MeshStatus, ReplicaState
from ostraka.v1 import router_pb2, shard_pb2

MIB = 1024 * 1024


def replica(**health: object) -> shard_pb2.ReplicaState:
    return shard_pb2.ReplicaState(
        collection="docs",
        shard=1,
        replica="r1",
        rows_live=900,
        rows_dead=100,
        delta_rows=40,
        segments=[
            shard_pb2.SegmentStatus(
                name="a", index_kind="IVF64,PQ8x4fs", list_imbalance=1.25, recall=0.995, codec="ab"
            ),
            shard_pb2.SegmentStatus(name="b", index_kind="Flat", list_imbalance=1.0),
        ],
        memory=[
            shard_pb2.MemoryPart(part="delta", bytes=3 * MIB),
            shard_pb2.MemoryPart(part="segment files", bytes=8 * MIB, mapped=True),
        ],
        health=shard_pb2.IndexHealth(**health),  # type: ignore[arg-type]  # fields chosen by the test
        lexical_statistics_age_ms=90_000,
    )


def mesh(*replicas: shard_pb2.ReplicaState) -> MeshStatus:
    status = shard_pb2.NodeStatusResponse(node="n1", replicas=replicas, resident_bytes=123 * MIB)
    return MeshStatus.from_proto(
        router_pb2.StatusResponse(
            nodes=[
                router_pb2.NodeView(node="n1", reachable=True, status=status),
                router_pb2.NodeView(node="n2", reachable=False, error="gone"),
            ]
        )
    )


MEASURED = replica(
    recall_canary=0.9931,
    canary_queries=48,
    canary_age_ms=2_000,
    quantization_error=0.03,
    quantization_error_basis=0.02,
    codec=shard_pb2.CodecRecord(generation=3, factory="IVF64,PQ8x4fs", basis_rows=800),
    damage_found=2,
    scrubbed_age_ms=7_200_000,
    builds=5,
    building="merge of 2",
)


def test_rows_hold_what_was_measured() -> None:
    state = ReplicaState.from_proto(MEASURED)
    assert index_row("n1", state) == (
        *("docs", 1, "n1", 900, 100, 40, 2, "IVF64,PQ8x4fs, Flat", "generation 3", 5, "merge of 2"),
    )
    assert health_row("n1", state) == ("docs", 1, "n1", "0.993 over 48", "1.25", "1.50", "1.5 min", "2.0 h", 2)


def test_what_was_not_measured_is_not_a_zero() -> None:
    state = ReplicaState.from_proto(replica())
    assert index_row("n1", state)[8:] == ("-", 0, "-")
    assert health_row("n1", state)[3:] == ("-", "1.25", "-", "1.5 min", "-", 0)


def test_tables_show_parts_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    written = StringIO()
    monkeypatch.setattr(output, "CONSOLE", Console(file=written, width=160))
    print_health(mesh(MEASURED))
    text = written.getvalue()
    assert "0.993 over 48" in text
    assert "segment files (mapped)" in text
    assert "123.0" in text
    print_health(mesh())


def test_json_holds_every_field() -> None:
    told = json.loads(json.dumps(mesh(MEASURED), default=to_json))
    (state,) = told["nodes"][0]["replicas"]
    assert state["health"]["recall_canary"] == pytest.approx(0.9931)
    assert state["health"]["codec_generation"] == 3
    assert state["memory"] == [
        {"part": "delta", "bytes": 3 * MIB, "mapped": False},
        {"part": "segment files", "bytes": 8 * MIB, "mapped": True},
    ]
    assert state["segments"][0]["list_imbalance"] == 1.25
    assert ReplicaState.from_proto(MEASURED).memory_bytes == 3 * MIB


@pytest.mark.parametrize(
    ("milliseconds", "text"),
    [(0, "-"), (900, "0.9 s"), (59_000, "59.0 s"), (60_000, "1.0 min"), (3_600_000, "1.0 h"), (172_800_000, "2.0 d")],
)
def test_ages_are_told_in_their_largest_unit(milliseconds: int, text: str) -> None:
    assert age(milliseconds) == text
