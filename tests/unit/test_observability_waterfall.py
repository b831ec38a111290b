"""A trace put together from several files, as a picture and as text for assertions."""

from __future__ import annotations

from pathlib import Path

from observability import names, otlp_json
from observability.span_record import KIND_CLIENT, KIND_SERVER, STATUS_ERROR, SpanRecord
from observability.trace_files import build_tree, read_spans, trace_ids
from observability.waterfall import render, tree_text

TRACE = "ab" * 16
MS = 1_000_000


def span(number: int, parent: int, name: str, begin_ms: int, end_ms: int, **more: object) -> SpanRecord:
    parent_id = f"{parent:016x}" if parent else ""
    values = {"kind": 1, "attributes": {}, "service": "router", "instance": "0", **more}
    return SpanRecord(TRACE, f"{number:016x}", parent_id, name, start_ns=begin_ms * MS, end_ns=end_ms * MS, **values)  # type: ignore[arg-type]  # values is built from keywords


SPANS = [
    span(1, 0, "ostraka.v1.RouterService/Ask", 0, 100, kind=KIND_SERVER),
    span(3, 1, "fuse", 80, 90),
    span(2, 1, "leg", 10, 70, kind=KIND_CLIENT, attributes={names.LEG_ROLE: "hedge", names.LEG_OUTCOME: "won"}),
    span(4, 2, "search", 20, 60, service="shard", instance="n1", status=STATUS_ERROR, status_message="lost"),
]


def test_tree_text_is_the_same_whatever_the_order_and_timing() -> None:
    expected = "\n".join(
        [
            "ostraka.v1.RouterService/Ask SERVER router",
            "  fuse router",
            "  leg CLIENT router role=hedge outcome=won",
            "    search shard",
        ]
    )
    attributes = [names.LEG_ROLE, names.LEG_OUTCOME]
    assert tree_text(SPANS, attributes) == expected
    assert tree_text(reversed(SPANS), attributes) == expected


def test_waterfall_shows_nesting_bars_and_what_is_notable() -> None:
    lines = render(SPANS, width=80).splitlines()
    assert lines[0] == f"trace {TRACE}  100.0 ms  4 spans"
    assert [line.split(" (")[0] for line in lines[1:]] == [
        "ostraka.v1.RouterService/Ask", "  leg", "    search", "  fuse",
    ]  # fmt: skip
    assert "60.00 ms  role=hedge outcome=won" in lines[2]
    assert "(shard/n1)" in lines[3]
    assert lines[3].endswith("ERROR lost")
    bars = [line.count("█") for line in lines[1:]]
    assert bars[0] == max(bars)
    assert bars[1] > bars[2] > bars[3] > 0


def test_nothing_is_left_out() -> None:
    orphan = span(9, 77, "orphan", 5, 6)
    itself = span(8, 8, "its own parent", 7, 8)
    roots = build_tree([*SPANS, orphan, itself])
    assert [root.span.name for root in roots] == ["ostraka.v1.RouterService/Ask", "orphan", "its own parent"]
    assert "orphan" in render([*SPANS, orphan])
    assert render([]) == "no spans"


def test_long_names_are_cut_to_the_width() -> None:
    long = span(1, 0, "x" * 300, 0, 1)
    assert all(len(line) < 140 for line in render([long], width=80).splitlines())


def test_files_are_joined_and_filtered(tmp_path: Path) -> None:
    for service in ("router", "shard"):
        mine = [s for s in SPANS if s.service == service]
        resource = {"service.name": service, "service.instance.id": mine[0].instance}
        (tmp_path / f"{service}.jsonl").write_text(otlp_json.encode(mine, resource) + "\n", encoding="utf-8")
    found = read_spans(tmp_path, TRACE[:8])
    assert tree_text(found) == tree_text(SPANS)
    assert trace_ids(found) == [TRACE]
    assert read_spans(tmp_path, "ff") == []
    assert read_spans(tmp_path / "none") == []
