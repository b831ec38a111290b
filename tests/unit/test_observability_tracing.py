"""Export: the official file format, sampling, rotation, and drops that are counted and hurt nobody."""

from __future__ import annotations

import base64
import json
import threading
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.trace.v1.trace_pb2 import TracesData
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import Link, SpanKind, Status, StatusCode

from observability import otlp_json, spans, tracing
from observability.drop_queue import DropQueue
from observability.span_file import SpanFile
from observability.trace_files import read_spans
from observability.tracing import TracingSettings
from tests.traced import recording


class _Kept(SpanExporter):
    def __init__(self) -> None:
        self.spans: list[ReadableSpan] = []

    def export(self, batch: Any) -> SpanExportResult:
        self.spans += batch
        return SpanExportResult.SUCCESS


def official(line: str) -> TracesData:
    """The line read by protobuf's own JSON parser, after turning hex ids into the base64 it wants."""

    def convert(value: Any) -> Any:
        if isinstance(value, dict):
            return {
                key: base64.b64encode(bytes.fromhex(item)).decode()
                if key in ("traceId", "spanId", "parentSpanId")
                else convert(item)
                for key, item in value.items()
            }
        return [convert(item) for item in value] if isinstance(value, list) else value

    return json_format.Parse(json.dumps(convert(json.loads(line))), TracesData())


def test_lines_say_what_the_official_encoder_says() -> None:
    kept, provider = _Kept(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(kept))
    tracer = provider.get_tracer("ostraka")
    with tracer.start_as_current_span("outer", kind=SpanKind.SERVER) as outer:
        attributes: dict[str, Any] = {
            "s": 'ü\n"',
            "i": 2**53 + 1,
            "neg": -1,
            "f": 0.1,
            "b": False,
            "l": [1, 2],
            "e": [],
            "t": ["x"],
        }
        link = Link(outer.get_span_context(), {"why": "batch"})
        with tracer.start_as_current_span("inner", attributes=attributes, links=[link]) as inner:
            inner.add_event("event", {"n": 1}, timestamp=1_700_000_000_000_000_001)
            inner.set_status(Status(StatusCode.ERROR, "why"))
    records = [tracing.record_of(span) for span in kept.spans]
    ours = official(otlp_json.encode(records, {"service.name": "x"}))
    theirs = encode_spans(kept.spans)
    (scope,) = ours.resource_spans[0].scope_spans
    expected = [span for resource in theirs.resource_spans for s in resource.scope_spans for span in s.spans]
    for span in (*scope.spans, *expected):
        # Ours also say whether the trace is sampled, which the official encoder leaves out.
        span.flags &= 0x300
        span.status.SetInParent()
        for linked in span.links:
            linked.flags = 0
    assert sorted(scope.spans, key=lambda s: s.name) == sorted(expected, key=lambda s: s.name)
    assert ours.resource_spans[0].resource.attributes[0].value.string_value == "x"


def test_decode_reads_back_what_encode_wrote(tmp_path: Path) -> None:
    with recording(tmp_path) as recorded:
        with spans.span("one", attributes={"nan": float("nan"), "inf": float("inf"), "list": [1.5, 2.5]}) as one:
            one.add_event("moment", {"k": "v"})
        (record,) = recorded.spans()
    line = otlp_json.encode([record], {"service.name": record.service, "service.instance.id": record.instance})
    official(line)
    (again,) = otlp_json.decode(line)
    assert str(again) == str(record)
    with pytest.raises(ValueError, match="not OTLP"):
        otlp_json.decode('{"resourceSpans": [{"scopeSpans": [{"spans": [{}]}]}]}')


def test_every_line_of_a_file_is_official(tmp_path: Path) -> None:
    with recording(tmp_path) as recorded:
        for number in range(5):
            with spans.span(f"span {number}"):
                pass
            recorded.spans()
    (file,) = tmp_path.iterdir()
    assert file.name == "test-0.jsonl"
    names = [
        span.name
        for line in file.read_text(encoding="utf-8").splitlines()
        for span in official(line).resource_spans[0].scope_spans[0].spans
    ]
    assert names == [f"span {number}" for number in range(5)]


def test_sampling_follows_the_root_and_the_caller(tmp_path: Path) -> None:
    with recording(tmp_path, sample_ratio=0.0) as recorded:
        with spans.span("root") as root:
            assert spans.traceparent().endswith("-00")
            assert not root.is_recording()
        sampled = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
        with spans.span("forced", parent=sampled), spans.span("below"):
            assert spans.traceparent().endswith("-01")
        assert [span.name for span in recorded.spans()] == ["below", "forced"]


def test_a_full_queue_drops_and_counts() -> None:
    entered, release, consumed = threading.Event(), threading.Event(), list[int]()

    def consume(batch: list[int]) -> None:
        entered.set()
        release.wait(30)
        consumed.extend(batch)

    queue: DropQueue[int] = DropQueue("test", consume, items_max=3, batch_max=1, interval_s=60)
    assert queue.offer(0)
    assert entered.wait(30)
    assert [queue.offer(number) for number in range(1, 6)] == [True, True, True, False, False]
    assert queue.dropped == 2
    assert not queue.flush(0)
    release.set()
    assert queue.flush(30)
    assert consumed == [0, 1, 2, 3]
    assert queue.close(30)
    assert not queue.offer(9)
    assert queue.dropped == 3


def test_a_consumer_that_fails_is_counted_and_the_queue_goes_on() -> None:
    consumed: list[int] = []

    def consume(batch: list[int]) -> None:
        if batch == [0]:
            raise OSError("disk full")
        consumed.extend(batch)

    queue: DropQueue[int] = DropQueue("test", consume, items_max=10, batch_max=1, interval_s=60)
    for number in range(3):
        queue.offer(number)
    assert queue.flush(30)
    assert (queue.dropped, consumed) == (1, [1, 2])
    assert isinstance(queue.last_error, OSError)
    queue.close(30)


def test_close_consumes_what_is_left() -> None:
    consumed: list[int] = []
    queue: DropQueue[int] = DropQueue("test", consumed.extend, items_max=100, batch_max=10, interval_s=60)
    for number in range(25):
        queue.offer(number)
    assert queue.close(30)
    assert consumed == list(range(25))


def test_a_disk_that_cannot_be_written_drops_spans_and_fails_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(self: SpanFile, line: str) -> None:
        raise OSError(28, "No space left on device")

    before = tracing.spans_dropped()
    with recording(tmp_path) as recorded:
        with monkeypatch.context() as patched:
            patched.setattr(SpanFile, "append", full)
            for _ in range(2):
                with spans.span("lost"):
                    pass
                recorded.spans()
            assert tracing.spans_dropped() - before == 2
        with spans.span("kept"):
            pass
        assert [span.name for span in recorded.spans()] == ["kept"]
    assert capsys.readouterr().err.count("No space left") == 1
    assert tracing.spans_dropped() - before == 2


def test_files_rotate_and_a_cut_line_is_ended(tmp_path: Path) -> None:
    file = SpanFile(tmp_path, "router-0", bytes_max=100)
    for letter in "abc":
        file.append(letter * 60)
    assert file.path.read_text(encoding="utf-8") == "c" * 60 + "\n"
    assert file.predecessor.read_text(encoding="utf-8") == "b" * 60 + "\n"
    file.path.write_text("whole\ncut", encoding="utf-8")
    SpanFile(tmp_path, "router-0", bytes_max=100).append("next")
    assert file.path.read_text(encoding="utf-8") == "whole\ncut\nnext\n"


def test_readers_pass_over_cut_lines(tmp_path: Path) -> None:
    with recording(tmp_path) as recorded, spans.span("whole"):
        pass
    (file,) = tmp_path.iterdir()
    line = file.read_bytes()
    file.write_bytes(line[:50] + b"\n" + line + line[: len(line) // 2])
    assert [span.name for span in read_spans(recorded.directory)] == ["whole"]
    file.write_bytes(b'{"resourceSpans": 7}\n')
    with pytest.raises(ValueError, match=r"test-0\.jsonl, line 1: not OTLP"):
        read_spans(tmp_path)


def test_endpoints_in_the_clear_are_refused(tmp_path: Path) -> None:
    for endpoint, message in (("http://collector:4317", "in the clear"), ("collector:4317", "must be https")):
        with pytest.raises(ValueError, match=message):
            tracing.configure(TracingSettings("test", "0", "1", tmp_path, otlp_endpoint=endpoint))


def test_closing_is_bounded_and_counts_what_is_left() -> None:
    entered, release = threading.Event(), threading.Event()

    def consume(_: list[int]) -> None:
        entered.set()
        release.wait(30)

    queue: DropQueue[int] = DropQueue("test", consume, items_max=10, batch_max=1, interval_s=60)
    queue.offer(0)
    assert entered.wait(30)
    for number in range(3):
        queue.offer(number)
    assert not queue.close(0.01)
    assert queue.dropped == 3
    release.set()


def test_a_collector_that_is_away_costs_only_spans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "COLLECTOR_TIMEOUT_S", 0.2)
    before = tracing.spans_dropped()
    tracing.configure(TracingSettings("test", "0", "1", tmp_path, otlp_endpoint="http://127.0.0.1:1"))
    try:
        with spans.span("lost"):
            pass
        tracing.flush(30)
    finally:
        tracing.shutdown()
    assert tracing.spans_dropped() == before + 1
    assert list(tmp_path.iterdir()) == []
