"""What can go wrong when calling a mesh, as one tree.

    OstrakaError                 every error of this package
    |- ClientStateError          the client was used before it was opened or after it was closed
    |- CertificateError          a certificate or key file is missing or unreadable; names the file
    |- RequestError              the mesh refused the request; repeating it cannot help; nothing changed
    |  |- InvalidRequest         a field has an impossible value; `field` names it
    |  |- NotFound               the collection is unknown
    |  |- FailedPrecondition     for example vectors of another embedding model than the collection's
    |  |- PermissionDenied       the certificate's role may not call this method
    |  `- Unauthenticated        no certificate, or one the mesh does not trust
    |- Unavailable               not now; `definite` says whether nothing happened for certain
    |  `- Overloaded             refused at the door; `retry_after_s` says when to come back
    |- Indefinite                it may or may not have happened
    |  |- DeadlineExceeded       no answer in time
    |  |- Cancelled              the call was cancelled on the way
    |  `- ServerError            a defect or lost data on the other side (INTERNAL, DATA_LOSS, UNKNOWN)
    `- WriteError                the mesh answered, but not every document was acknowledged; `result` has each outcome
       |- WriteUncertain         at least one may become visible; repeat it with its `retry_version`
       `- WriteRefused           nothing of the refused documents will ever appear

What crosses the wire: the status code, the message, and `google.rpc` details (BadRequest's first field,
RetryInfo, ErrorInfo's reason and metadata). Everything else of the server's exception is lost on purpose.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

if TYPE_CHECKING:
    from ostraka.results import WriteResult

_DETAILS_KEY = "grpc-status-details-bin"


class OstrakaError(Exception):
    """Every error of this package."""

    definite: bool = True
    """Nothing changed for certain, so repeating is safe; False: it may have happened."""

    def __init__(
        self,
        message: str,
        *,
        field: str = "",
        reason: str = "",
        retry_after_s: float | None = None,
        metadata: Mapping[str, str] | None = None,
        definite: bool | None = None,
    ) -> None:
        """`definite` None: the class decides."""
        super().__init__(message)
        if definite is not None:
            self.definite = definite
        self.message = message
        self.field = field
        """The request field that was refused, when one was."""
        self.reason = reason
        """Machine-readable reason from ErrorInfo, when given."""
        self.retry_after_s = retry_after_s
        """The server's own advice (RetryInfo), when given."""
        self.metadata = dict(metadata or {})


class ClientStateError(OstrakaError):
    """The client was used before it was opened or after it was closed."""


class CertificateError(OstrakaError):
    """A certificate or key file is missing or unreadable; the message names the file."""


class RequestError(OstrakaError):
    """The mesh refused the request; repeating it cannot help; nothing changed."""


class InvalidRequest(RequestError):
    """A field has an impossible value; `field` names it."""


class NotFound(RequestError):
    """The collection is unknown."""


class FailedPrecondition(RequestError):
    """The request contradicts the mesh's state, for example its embedding model."""


class PermissionDenied(RequestError):
    """The certificate's role may not call this method."""


class Unauthenticated(RequestError):
    """No certificate, or one the mesh does not trust."""


class Unavailable(OstrakaError):
    """Not now. `definite` is true only when the server itself said that nothing happened."""

    definite = False


class Overloaded(Unavailable):
    """Refused at the door, `definite` when by the mesh itself; `retry_after_s` says when to come back."""


class Indefinite(OstrakaError):
    """It may or may not have happened."""

    definite = False


class DeadlineExceeded(Indefinite):
    """No answer in time."""


class Cancelled(Indefinite):
    """The call was cancelled on the way."""


class ServerError(Indefinite):
    """A defect or lost data on the other side."""


class WriteError(OstrakaError):
    """The mesh answered, but not every document was acknowledged; `result` has each document's outcome."""

    def __init__(self, message: str, result: WriteResult) -> None:
        super().__init__(message)
        self.result = result


class WriteUncertain(WriteError):
    """At least one document may become visible; repeat it with its `retry_version`."""

    definite = False


class WriteRefused(WriteError):
    """Nothing of the refused documents will ever appear."""


CODES: Mapping[grpc.StatusCode, type[OstrakaError]] = {
    grpc.StatusCode.CANCELLED: Cancelled,
    grpc.StatusCode.UNKNOWN: ServerError,
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.ALREADY_EXISTS: FailedPrecondition,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Overloaded,
    grpc.StatusCode.FAILED_PRECONDITION: FailedPrecondition,
    grpc.StatusCode.ABORTED: FailedPrecondition,
    grpc.StatusCode.UNIMPLEMENTED: RequestError,
    grpc.StatusCode.OUT_OF_RANGE: InvalidRequest,
    grpc.StatusCode.INTERNAL: ServerError,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.DATA_LOSS: ServerError,
}
"""Every status code but OK, which is never an error; a test proves it total."""


def from_rpc_error(error: grpc.aio.AioRpcError) -> OstrakaError:
    """The typed error of a failed call; details that cannot be read are left out, never raised."""
    kind = CODES.get(error.code(), ServerError)
    field, reason, retry_after_s, metadata = _details(error)
    message = error.details() or error.code().name
    # Without the mesh's own word the connection may have broken after the request was sent.
    definite = metadata.pop("definite", "") == "true" or issubclass(kind, RequestError)
    return kind(
        message,
        field=field,
        reason=reason,
        retry_after_s=retry_after_s,
        metadata=metadata,
        definite=definite,
    )


def _details(error: grpc.aio.AioRpcError) -> tuple[str, str, float | None, dict[str, str]]:
    """(field, reason, retry_after_s, metadata) of the `google.rpc` details, as far as given."""
    field, reason, retry_after_s = "", "", None
    metadata: dict[str, str] = {}
    for key, value in error.trailing_metadata() or ():
        if key != _DETAILS_KEY or not isinstance(value, bytes):
            continue
        try:
            status = status_pb2.Status.FromString(value)
            for detail in status.details:
                bad, retry, info = (
                    error_details_pb2.BadRequest(),
                    error_details_pb2.RetryInfo(),
                    error_details_pb2.ErrorInfo(),
                )
                if detail.Unpack(bad) and bad.field_violations:
                    field = field or bad.field_violations[0].field
                elif detail.Unpack(retry):
                    retry_after_s = retry.retry_delay.ToTimedelta().total_seconds()
                elif detail.Unpack(info):
                    reason = info.reason
                    metadata.update(info.metadata)
        except DecodeError:
            continue
    return field, reason, retry_after_s, metadata
