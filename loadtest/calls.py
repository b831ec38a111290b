"""One planned call as an RPC to the router, and how it ended as a `CallResult`.

An OK status is not enough: a search without a hit, a write without an acknowledgement and an answer without an end
have not done what was asked, and count as failures under a code of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from types import TracebackType
from typing import Self, TypeAlias, TypeVar

import grpc
import grpc.experimental
import numpy as np

from loadtest.dispatch import CallResult
from loadtest.questions import WRITER_PREFIX, Question
from loadtest.slo import Load
from loadtest.workload import Operation, PlannedCall
from observability.sync_stub import Outcome, TracedMethod, traced_stream, traced_unary
from ostraka.v1 import passage_pb2, router_pb2
from services.runtime.channel import channel_options
from services.runtime.config import Config
from services.runtime.tls import Role, channel_credentials

EMPTY = "EMPTY"
UNFINISHED = "UNFINISHED"
CONNECT_TIMEOUT_S = 10.0
DETAIL_CHARS_MAX = 200
_SERVICE = "/ostraka.v1.RouterService/"
_LEVELS: Mapping[str, passage_pb2.ConsistencyLevel.ValueType] = {
    "one": passage_pb2.CONSISTENCY_LEVEL_ONE,
    "session": passage_pb2.CONSISTENCY_LEVEL_SESSION,
    "quorum": passage_pb2.CONSISTENCY_LEVEL_QUORUM,
}
_Response = TypeVar("_Response")
Search: TypeAlias = TracedMethod[router_pb2.SearchRequest, router_pb2.SearchResponse]
Ask: TypeAlias = TracedMethod[router_pb2.AskRequest, router_pb2.AskEvent]
Upsert: TypeAlias = TracedMethod[router_pb2.UpsertRequest, router_pb2.UpsertResponse]


class RouterCalls:
    """The calls of one generator, round robin over the routers of a mesh; `with` closes the channels."""

    def __init__(self, config: Config, load: Load, questions: Sequence[Question]) -> None:
        """Raises ConfigError when the client certificate is missing or damaged."""
        # Read a stream in the greenlet that asked, not in a thread of its own: under gevent those share few threads.
        single_threaded = (grpc.experimental.ChannelOptions.SingleThreadedUnaryStream, 1)
        options = [*channel_options(Role.ROUTER, config.mesh.message_bytes_max), single_threaded]
        credentials = channel_credentials(config.certs_dir, Role.CLIENT.value)
        self._channels = [grpc.secure_channel(a, credentials, options) for a in config.router.addresses]
        self._searches = cycle([_search_method(channel) for channel in self._channels])
        self._asks = cycle([_ask_method(channel) for channel in self._channels])
        self._upserts = cycle([_upsert_method(channel) for channel in self._channels])
        self._load = load
        self._questions = questions
        self._timeout_s = load.deadline_ms / 1e3
        self._ways: Mapping[Operation, Callable[[PlannedCall], CallResult]] = {
            Operation.SEARCH: self._search,
            Operation.ASK: self._ask,
            Operation.UPSERT: self._upsert,
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        for channel in self._channels:
            channel.close()

    def connect(self) -> None:
        """Finish the TLS handshakes. Raises grpc.FutureTimeoutError when a router does not answer."""
        for channel in self._channels:
            grpc.channel_ready_future(channel).result(CONNECT_TIMEOUT_S)

    def perform(self, call: PlannedCall) -> CallResult:
        """Make the call; never raises for what the mesh does."""
        return self._ways[call.operation](call)

    def _search(self, call: PlannedCall) -> CallResult:
        question = self._questions[call.question]
        query = router_pb2.Query(text=question.text) if question.text else router_pb2.Query(vector=_vector(question))
        request = router_pb2.SearchRequest(
            collection=self._load.collection,
            queries=[query],
            k=self._load.k,
            consistency=_LEVELS[self._load.consistency],
        )
        outcome = next(self._searches)(request, timeout_s=self._timeout_s)
        if outcome.ok and not any(result.hits for result in outcome.response.results):
            return CallResult(EMPTY, outcome.trace_id, "a search without a hit")
        return _result(outcome)

    def _ask(self, call: PlannedCall) -> CallResult:
        request = router_pb2.AskRequest(
            collection=self._load.collection,
            question=self._questions[call.question].text,
            consistency=_LEVELS[self._load.consistency],
        )
        outcome = next(self._asks)(request, timeout_s=self._timeout_s)
        if outcome.ok and not any(event.HasField("answer") for event in outcome.responses):
            return CallResult(UNFINISHED, outcome.trace_id, "the stream ended without an answer")
        return _result(outcome)

    def _upsert(self, call: PlannedCall) -> CallResult:
        question = self._questions[call.question]
        passage = router_pb2.NewPassage(text=f"{question.text} (load test, call {call.index})".strip())
        if question.vector:
            passage.vector.CopyFrom(_vector(question))
        document = router_pb2.NewDocument(
            document_id=f"{WRITER_PREFIX}{call.question}", source="loadtest:writer", passages=[passage]
        )
        request = router_pb2.UpsertRequest(collection=self._load.collection, documents=[document])
        outcome = next(self._upserts)(request, timeout_s=self._timeout_s)
        if outcome.ok:
            write = outcome.response.documents[0]
            if write.outcome != router_pb2.WRITE_OUTCOME_ACKNOWLEDGED:
                name = router_pb2.WriteOutcome.Name(write.outcome).removeprefix("WRITE_OUTCOME_")
                return CallResult(name, outcome.trace_id, write.reason[:DETAIL_CHARS_MAX])
        return _result(outcome)


def _result(outcome: Outcome[_Response]) -> CallResult:
    return CallResult(outcome.code.name, outcome.trace_id, outcome.details[:DETAIL_CHARS_MAX])


def _vector(question: Question) -> passage_pb2.Vector:
    return passage_pb2.Vector(dim=len(question.vector) // np.dtype("<f4").itemsize, data=question.vector)


def _search_method(channel: grpc.Channel) -> Search:
    serialize, parse = router_pb2.SearchRequest.SerializeToString, router_pb2.SearchResponse.FromString
    return traced_unary(channel, f"{_SERVICE}Search", serialize, parse)


def _ask_method(channel: grpc.Channel) -> Ask:
    serialize, parse = router_pb2.AskRequest.SerializeToString, router_pb2.AskEvent.FromString
    return traced_stream(channel, f"{_SERVICE}Ask", serialize, parse)


def _upsert_method(channel: grpc.Channel) -> Upsert:
    serialize, parse = router_pb2.UpsertRequest.SerializeToString, router_pb2.UpsertResponse.FromString
    return traced_unary(channel, f"{_SERVICE}Upsert", serialize, parse)
