"""Logs: one JSON object per line on stderr, with the trace id of the request under way.

Lines are written by a background thread from a bounded queue, so that a stalled reader of stderr never stalls a
request; lines that do not fit are dropped and counted. Log transitions, not states.
"""

from __future__ import annotations

import json
import logging
import sys
import time
import traceback
from dataclasses import dataclass
from typing import Any, TextIO

from observability.drop_queue import DropQueue
from observability.spans import current_trace_id

LINES_MAX = 16_384
"""Lines waiting to be written."""
_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}
_FLUSH_S = 2.0


@dataclass(frozen=True, slots=True)
class LogSettings:
    """Who writes, and from which level."""

    service: str
    instance: str
    level: str = "info"


class _Output:
    """Where lines go: straight to stderr until configured, then through a queue."""

    def __init__(self) -> None:
        self.settings = LogSettings("", "", "warning")
        self.threshold = _LEVELS["warning"]
        self.stream: TextIO | None = None
        self.queue: DropQueue[dict[str, Any]] | None = None

    def write(self, lines: list[dict[str, Any]]) -> None:
        text = "".join(json.dumps(line, default=str, ensure_ascii=False) + "\n" for line in lines)
        stream = self.stream or sys.stderr
        stream.write(text)
        stream.flush()


_OUTPUT = _Output()


class Logger:
    """Writes events with fields: `log.info("replica caught up", shard=1, missing=0)`."""

    def __init__(self, name: str) -> None:
        self._name = name

    def debug(self, event: str, **fields: Any) -> None:
        self._log("debug", event, fields)

    def info(self, event: str, **fields: Any) -> None:
        self._log("info", event, fields)

    def warning(self, event: str, **fields: Any) -> None:
        self._log("warning", event, fields)

    def error(self, event: str, **fields: Any) -> None:
        self._log("error", event, fields)

    def exception(self, event: str, error: BaseException, **fields: Any) -> None:
        """An error with its traceback."""
        text = "".join(traceback.format_exception(error))
        self._log("error", event, {**fields, "error": repr(error), "traceback": text})

    def _log(self, level: str, event: str, fields: dict[str, Any]) -> None:
        if _LEVELS[level] < _OUTPUT.threshold:
            return
        line: dict[str, Any] = {"ts": _timestamp(), "level": level, "logger": self._name, "event": event}
        settings = _OUTPUT.settings
        if settings.service:
            line["service"], line["instance"] = settings.service, settings.instance
        if trace_id := current_trace_id():
            line["trace_id"] = trace_id
        line.update(fields)
        queue = _OUTPUT.queue
        if queue is None:
            _OUTPUT.write([line])
        else:
            queue.offer(line)


class _Bridge(logging.Handler):
    """Takes what libraries log through the standard library's logging."""

    def emit(self, record: logging.LogRecord) -> None:
        level = "error" if record.levelno >= 40 else "warning" if record.levelno >= 30 else "info"
        fields: dict[str, Any] = {}
        if record.exc_info and record.exc_info[1] is not None:
            fields["traceback"] = "".join(traceback.format_exception(record.exc_info[1]))
        Logger(record.name)._log(level, record.getMessage(), fields)


def logger(name: str) -> Logger:
    """The logger of one module."""
    return Logger(name)


def configure(settings: LogSettings, stream: TextIO | None = None) -> None:
    """Begin writing through the queue. `stream` None is stderr. Libraries' warnings are taken in."""
    shutdown()
    _OUTPUT.settings, _OUTPUT.threshold, _OUTPUT.stream = settings, _LEVELS[settings.level], stream
    _OUTPUT.queue = DropQueue("ostraka-logs", _OUTPUT.write, items_max=LINES_MAX, batch_max=256, interval_s=0.1)
    root = logging.getLogger()
    root.addHandler(_BRIDGE)
    root.setLevel(logging.WARNING)


def shutdown(timeout_s: float = _FLUSH_S) -> None:
    """Write what is queued and return to direct writing of warnings. May be called again."""
    queue, _OUTPUT.queue = _OUTPUT.queue, None
    if queue is not None:
        queue.close(timeout_s)
    _OUTPUT.settings, _OUTPUT.threshold, _OUTPUT.stream = LogSettings("", "", "warning"), _LEVELS["warning"], None
    logging.getLogger().removeHandler(_BRIDGE)


def lines_dropped() -> int:
    """Lines lost because the queue was full or stderr could not be written."""
    return _OUTPUT.queue.dropped if _OUTPUT.queue is not None else 0


def access(method: str, role: str, code: str, duration_ms: float, peer: str) -> None:
    """The one line of a finished RPC; health checks come several times a second and are told at debug only."""
    log = _ACCESS.debug if method.startswith("/grpc.health.") else _ACCESS.info
    log("rpc", method=method, role=role, code=code, ms=round(duration_ms, 3), peer=peer)


def _timestamp() -> str:
    seconds, nanos = divmod(time.time_ns(), 1_000_000_000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{nanos // 1_000_000:03d}Z"


_ACCESS = Logger("access")
_BRIDGE = _Bridge()
