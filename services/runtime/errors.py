"""What can go wrong in a call, and how it crosses the wire.

    MeshError                     .code, .message, .field, .retry_ms, .reason, .metadata, .definite
    |- InvalidArgument            the request can never work as it is; `field` says which part
    |- NotFound                   what the request names does not exist
    |- FailedPrecondition         the mesh is not in a state that allows this request
    |- PermissionDenied           the caller's role may not call this method
    |- Unauthenticated            the caller did not say who it is
    |- Unimplemented              the server does not know the method
    |- ResourceExhausted          a queue or limit is full; come back after `retry_ms`
    |- Unavailable                the service or too many replicas cannot be reached
    |- DeadlineExceeded           time ran out
    |- Cancelled                  the caller went away
    |- DataLoss                   stored data does not match its checksum
    `- Internal                   a defect of the server; details are in its log under the trace id

    StartError                    a process cannot start; one line, exit code 1 (not an RPC error)

Servicers raise MeshErrors; the error interceptor turns them into a status with google.rpc details.
A *definite* error says that nothing was changed; only then, or when the request is idempotent, may it be sent again.

Across the wire go: code, message, field (BadRequest), retry_ms (RetryInfo), reason, metadata and definite
(ErrorInfo). Lost are: the class, where codes share one (ABORTED and ALREADY_EXISTS read as FailedPrecondition,
OUT_OF_RANGE as InvalidArgument, UNKNOWN as Internal), the traceback and the cause.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import ClassVar

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

DOMAIN = "ostraka"
MESSAGE_CHARS_MAX = 2_048
"""Trailing metadata is bounded; a longer message is cut."""
_DETAILS_KEY = "grpc-status-details-bin"
_DEFINITE = "definite"


class StartError(RuntimeError):
    """The process cannot start; the message is one line and says what to do."""


class MeshError(Exception):
    """An error that a caller of the mesh can act on."""

    code: ClassVar[grpc.StatusCode] = grpc.StatusCode.UNKNOWN
    definite_default: ClassVar[bool] = False

    def __init__(
        self,
        message: str,
        field: str = "",
        *,
        retry_ms: int = 0,
        reason: str = "",
        metadata: Mapping[str, str] | None = None,
        definite: bool | None = None,
    ) -> None:
        """`field`: path of the request field at fault. `retry_ms` > 0: when to try again. `definite` None: the
        class decides."""
        super().__init__(message)
        self.message = message
        self.field = field
        self.retry_ms = retry_ms
        self.reason = reason or _screaming(type(self).__name__)
        self.metadata: Mapping[str, str] = dict(metadata or {})
        self.definite = self.definite_default if definite is None else definite

    def __str__(self) -> str:
        return f"{self.field}: {self.message}" if self.field else self.message


class InvalidArgument(MeshError):
    """The request can never work as it is."""

    code = grpc.StatusCode.INVALID_ARGUMENT
    definite_default = True


class NotFound(MeshError):
    """What the request names does not exist."""

    code = grpc.StatusCode.NOT_FOUND
    definite_default = True


class FailedPrecondition(MeshError):
    """The mesh is not in a state that allows this request."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    definite_default = True


class PermissionDenied(MeshError):
    """The caller's role may not call this method."""

    code = grpc.StatusCode.PERMISSION_DENIED
    definite_default = True


class Unauthenticated(MeshError):
    """The caller did not say who it is."""

    code = grpc.StatusCode.UNAUTHENTICATED
    definite_default = True


class Unimplemented(MeshError):
    """The server does not know the method."""

    code = grpc.StatusCode.UNIMPLEMENTED
    definite_default = True


class ResourceExhausted(MeshError):
    """A queue or limit is full."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    definite_default = True


class Unavailable(MeshError):
    """The service or too many replicas cannot be reached."""

    code = grpc.StatusCode.UNAVAILABLE


class DeadlineExceeded(MeshError):
    """Time ran out."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED


class Cancelled(MeshError):
    """The caller went away."""

    code = grpc.StatusCode.CANCELLED


class DataLoss(MeshError):
    """Stored data does not match its checksum."""

    code = grpc.StatusCode.DATA_LOSS


class Internal(MeshError):
    """A defect of the server."""

    code = grpc.StatusCode.INTERNAL


ERROR_OF_CODE: Mapping[grpc.StatusCode, type[MeshError]] = {
    grpc.StatusCode.OK: Internal,  # an error that claims success is a defect
    grpc.StatusCode.CANCELLED: Cancelled,
    grpc.StatusCode.UNKNOWN: Internal,
    grpc.StatusCode.INVALID_ARGUMENT: InvalidArgument,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.ALREADY_EXISTS: FailedPrecondition,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ResourceExhausted,
    grpc.StatusCode.FAILED_PRECONDITION: FailedPrecondition,
    grpc.StatusCode.ABORTED: FailedPrecondition,
    grpc.StatusCode.UNIMPLEMENTED: Unimplemented,
    grpc.StatusCode.INTERNAL: Internal,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.DATA_LOSS: DataLoss,
    grpc.StatusCode.OUT_OF_RANGE: InvalidArgument,
}
"""Total over grpc.StatusCode; a test fails when a new code is not mapped."""


def to_rpc_status(error: MeshError) -> grpc.Status:
    """The status that carries `error`, with google.rpc details in the trailing metadata."""
    message = error.message if len(error.message) <= MESSAGE_CHARS_MAX else error.message[:MESSAGE_CHARS_MAX] + "..."
    status = status_pb2.Status(code=error.code.value[0], message=message)
    if error.field:
        violation = error_details_pb2.BadRequest.FieldViolation(field=error.field, description=message)
        _pack(status.details.add(), error_details_pb2.BadRequest(field_violations=[violation]))
    if error.retry_ms > 0:
        delay = duration_pb2.Duration(seconds=error.retry_ms // 1_000, nanos=error.retry_ms % 1_000 * 1_000_000)
        _pack(status.details.add(), error_details_pb2.RetryInfo(retry_delay=delay))
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=dict(error.metadata))
    info.metadata[_DEFINITE] = "true" if error.definite else "false"
    _pack(status.details.add(), info)
    result: grpc.Status = rpc_status.to_status(status)
    return result


def from_rpc_error(error: grpc.aio.AioRpcError) -> MeshError:
    """The error a remote server raised, or what is known of it when it never answered (then indefinite)."""
    kind = ERROR_OF_CODE[error.code()]
    message = error.details() or error.code().name
    status = _status_of(error)
    if status is None:
        return kind(message, definite=kind.definite_default and kind is not ResourceExhausted)
    field, retry_ms, reason, metadata = "", 0, "", dict[str, str]()
    violations, retry, info = (
        error_details_pb2.BadRequest(),
        error_details_pb2.RetryInfo(),
        error_details_pb2.ErrorInfo(),
    )
    for detail in status.details:
        if detail.Unpack(violations) and violations.field_violations:
            field = violations.field_violations[0].field
        elif detail.Unpack(retry):
            retry_ms = retry.retry_delay.seconds * 1_000 + retry.retry_delay.nanos // 1_000_000
        elif detail.Unpack(info):
            reason, metadata = info.reason, dict(info.metadata)
    definite = metadata.pop(_DEFINITE, "false") == "true"
    return kind(message, field, retry_ms=retry_ms, reason=reason, metadata=metadata, definite=definite)


def _status_of(error: grpc.aio.AioRpcError) -> status_pb2.Status | None:
    for key, value in error.trailing_metadata() or ():
        if key == _DETAILS_KEY and isinstance(value, bytes):
            try:
                return status_pb2.Status.FromString(value)
            except DecodeError:
                return None
    return None


def _pack(slot: any_pb2.Any, message: Message) -> None:
    slot.Pack(message)


def _screaming(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).upper()
