"""Spans of the calls to replicas, ended with an outcome however the call ends.

One RPC may serve several shards and several operations, so the interceptor's one span per RPC would not do:
each operation has its own span per shard it asks for, and the shard answers under that.
"""

from __future__ import annotations

from opentelemetry.trace import Span, SpanKind

from observability import names, spans

SPAN_WRITE = "ostraka.v1.ShardService/Write"
SPAN_GET = "ostraka.v1.ShardService/GetDocuments"
SPAN_LIST = "ostraka.v1.ShardService/ListDocuments"


class LegSpan:
    """One CLIENT span for one shard of one call to one node."""

    __slots__ = ("_span", "traceparent")

    def __init__(self, name: str, node: str, shard: int, role: str, parent: Span) -> None:
        self._span = spans.start_span(
            name,
            SpanKind.CLIENT,
            {
                names.RPC_SYSTEM: names.RPC_SYSTEM_GRPC,
                names.RPC_METHOD: name,
                names.NODE: node,
                names.SHARD: shard,
                names.LEG_ROLE: role,
            },
            parent,
        )
        self.traceparent = spans.traceparent(self._span)

    def end(self, outcome: str, replica: str = "", error: str = "") -> None:
        """End the span. `outcome` is one of the OUTCOME_ values; `error` says what failed."""
        span = self._span
        if span.is_recording():
            span.set_attribute(names.LEG_OUTCOME, outcome)
            if replica:
                span.set_attribute(names.REPLICA, replica)
            if error:
                span.set_attribute(names.ERROR_TYPE, error)
        spans.end_span(span)
