"""Logs are JSON lines with the trace id of the request under way."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from observability import logs, spans
from observability.logs import LogSettings
from tests.traced import recording


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    made = io.StringIO()
    logs.configure(LogSettings("router", "0", "info"), made)
    yield made
    logs.shutdown()


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    logs.shutdown()
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_has_time_level_service_and_fields(stream: io.StringIO) -> None:
    logs.logger("shard").info("caught up", shard=1, path=Path("/x"), text='quote " and\nnewline')
    (line,) = lines(stream)
    assert line.pop("ts").endswith("Z")
    assert line == {
        "level": "info", "logger": "shard", "event": "caught up", "service": "router", "instance": "0",
        "shard": 1, "path": "/x", "text": 'quote " and\nnewline',
    }  # fmt: skip


def test_the_trace_id_is_in_every_line_of_a_request(stream: io.StringIO, tmp_path: Path) -> None:
    with recording(tmp_path), spans.span("request"):
        logs.logger("x").warning("inside")
        trace_id = spans.current_trace_id()
    logs.logger("x").warning("outside")
    inside, outside = lines(stream)
    assert inside["trace_id"] == trace_id
    assert "trace_id" not in outside


def test_levels_and_health_checks(stream: io.StringIO) -> None:
    log = logs.logger("x")
    log.debug("no")
    log.error("yes")
    logs.access("/grpc.health.v1.Health/Check", "admin", "OK", 0.1, "ipv4:1")
    logs.access("/ostraka.v1.RouterService/Ask", "client", "OK", 12.3456, "ipv4:1")
    first, second = lines(stream)
    assert first["event"] == "yes"
    assert (second["method"], second["role"], second["code"], second["ms"]) == (
        "/ostraka.v1.RouterService/Ask", "client", "OK", 12.346,
    )  # fmt: skip


def test_exceptions_and_libraries_are_taken_in(stream: io.StringIO) -> None:
    try:
        raise ValueError("why")
    except ValueError as error:
        logs.logger("x").exception("failed", error)
        logging.getLogger("some.library").warning("odd %s", "thing", exc_info=True)
    ours, theirs = lines(stream)
    assert ours["error"] == "ValueError('why')"
    assert "Traceback" in ours["traceback"]
    assert (theirs["logger"], theirs["event"], theirs["level"]) == ("some.library", "odd thing", "warning")
    assert "Traceback" in theirs["traceback"]


def test_a_stream_that_fails_fails_nobody() -> None:
    class Broken(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    logs.configure(LogSettings("router", "0", "info"), Broken())
    logs.logger("x").info("lost")
    logs.shutdown()


def test_unconfigured_only_warnings_are_written(capsys: pytest.CaptureFixture[str]) -> None:
    logs.logger("x").info("no")
    logs.logger("x").warning("yes")
    (line,) = capsys.readouterr().err.splitlines()
    assert json.loads(line)["event"] == "yes"
