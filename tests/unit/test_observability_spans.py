"""Spans nest, carry W3C context, and end with their true outcome."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from opentelemetry.trace import SpanKind

from observability import names, spans
from observability.span_record import KIND_CLIENT, STATUS_ERROR
from tests.traced import Recording, recording

HEADER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def recorded(tmp_path: Path) -> Iterator[Recording]:
    with recording(tmp_path) as made:
        yield made


def test_nesting_and_attributes(recorded: Recording) -> None:
    attributes: dict[str, spans.AttributeValue] = {"a": 1, "b": [1, 2], "c": True, "d": 0.5, "e": "ü"}
    with spans.span("outer", SpanKind.CLIENT, attributes), spans.span("inner"):
        assert len(spans.current_trace_id()) == 32
    assert spans.current_trace_id() == ""
    (inner,), (outer,) = recorded.named("inner"), recorded.named("outer", KIND_CLIENT)
    assert (inner.parent_id, inner.trace_id) == (outer.span_id, outer.trace_id)
    assert outer.attributes == {"a": 1, "b": [1, 2], "c": True, "d": 0.5, "e": "ü"}
    assert outer.start_ns <= inner.start_ns <= inner.end_ns <= outer.end_ns
    assert (outer.service, outer.instance) == ("test", "0")


def test_a_held_span_is_ended_when_its_owner_says(recorded: Recording) -> None:
    held = spans.start_span("retrieval docs")
    with spans.use_span(held), spans.span("child"):
        assert spans.traceparent() != spans.traceparent(held)
    assert [span.name for span in recorded.spans()] == ["child"]
    held.set_attribute("late", "known only now")
    spans.end_span(held, 2_000_000_000_000_000_000)
    (span,) = recorded.named("retrieval docs")
    assert span.end_ns == 2_000_000_000_000_000_000
    assert span.attributes["late"] == "known only now"


@pytest.mark.parametrize("error", [ValueError("why"), asyncio.CancelledError(), GeneratorExit()])
def test_an_exception_becomes_the_status(recorded: Recording, error: BaseException) -> None:
    with pytest.raises(type(error)), spans.span("failing"):
        raise error
    (span,) = recorded.spans()
    assert span.status == STATUS_ERROR
    assert span.status_message == (str(error) or type(error).__name__)
    assert span.attributes[names.ERROR_TYPE] == type(error).__name__
    cancelled = not isinstance(error, ValueError)
    assert span.attributes.get(names.OUTCOME) == (names.OUTCOME_CANCELLED if cancelled else None)


def test_parents_of_every_kind(recorded: Recording) -> None:
    parent = spans.start_span("parent")
    context = parent.get_span_context()
    several: tuple[spans.Parent, ...] = (parent, context, spans.traceparent(parent))
    for number, given in enumerate(several):
        spans.end_span(spans.start_span(f"child {number}", parent=given, links=[context]))
    with spans.span("current"):
        for given in ("", None, "malformed"):
            spans.end_span(spans.start_span("default", parent=given))
    spans.end_span(parent)
    by_name = {span.name: span for span in recorded.spans()}
    for number in range(3):
        assert by_name[f"child {number}"].parent_id == by_name["parent"].span_id
        assert by_name[f"child {number}"].links[0].span_id == by_name["parent"].span_id
    assert {span.parent_id for span in recorded.named("default")} == {by_name["current"].span_id}


def test_traceparent_round_trip() -> None:
    parsed = spans.parse_traceparent(HEADER)
    assert parsed is not None
    assert parsed.is_remote
    assert spans.format_traceparent(parsed) == HEADER


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        HEADER.upper(),
        HEADER[:-1],
        HEADER + "-more",
        "ff" + HEADER[2:],
        "00-" + "0" * 32 + HEADER[35:],
        HEADER[:36] + "0" * 16 + "-01",
        HEADER.replace("a", "g"),
        "00-+af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    ],
)
def test_malformed_traceparents_are_none(text: str) -> None:
    assert spans.parse_traceparent(text) is None


def test_future_versions_are_read_by_their_first_fields() -> None:
    assert spans.parse_traceparent("01" + HEADER[2:] + "-what-the-future-brings") is not None


def test_without_configuration_spans_are_no_ops() -> None:
    with spans.span("nothing") as made:
        assert not made.is_recording()
        assert spans.traceparent() == ""
