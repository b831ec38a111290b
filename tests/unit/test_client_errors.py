"""Statuses become typed errors, with whatever details they carry."""

from __future__ import annotations

import grpc
import pytest
from google.protobuf import duration_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc.aio import AioRpcError, Metadata

from ostraka import errors

ALL_CODES = [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK]


def rpc_error(code: grpc.StatusCode, details: bytes | None = None, message: str = "why") -> AioRpcError:
    trailing = Metadata(*([("grpc-status-details-bin", details)] if details is not None else []))
    return AioRpcError(code, Metadata(), trailing, details=message)


def packed(*details: object) -> bytes:
    status = status_pb2.Status(code=3, message="why")
    for detail in details:
        status.details.add().Pack(detail)
    return bytes(status.SerializeToString())


def test_every_status_code_is_mapped() -> None:
    assert set(errors.CODES) == set(ALL_CODES)


@pytest.mark.parametrize("code", ALL_CODES)
def test_without_the_meshs_word_only_refusals_are_definite(code: grpc.StatusCode) -> None:
    error = errors.from_rpc_error(rpc_error(code))
    assert type(error) is errors.CODES[code]
    assert error.definite is isinstance(error, errors.RequestError)
    assert str(error) == "why"


def test_details_are_carried_over() -> None:
    violation = error_details_pb2.BadRequest.FieldViolation(field="k", description="too large")
    details = packed(
        error_details_pb2.BadRequest(field_violations=[violation]),
        error_details_pb2.RetryInfo(retry_delay=duration_pb2.Duration(seconds=1, nanos=500_000_000)),
        error_details_pb2.ErrorInfo(reason="QUEUE_FULL", domain="ostraka", metadata={"definite": "true", "queue": "7"}),
    )
    error = errors.from_rpc_error(rpc_error(grpc.StatusCode.UNAVAILABLE, details))
    assert isinstance(error, errors.Unavailable)
    assert (error.field, error.reason, error.retry_after_s) == ("k", "QUEUE_FULL", 1.5)
    assert error.metadata == {"queue": "7"}
    assert error.definite


def test_unreadable_details_are_left_out() -> None:
    error = errors.from_rpc_error(rpc_error(grpc.StatusCode.INTERNAL, b"\xff\xff\xff"))
    assert isinstance(error, errors.ServerError)
    assert error.retry_after_s is None


def test_what_the_servers_write_the_client_reads() -> None:
    from services.runtime import errors as mesh

    raised = mesh.ResourceExhausted("the queue is full", "documents", retry_ms=250)
    status = mesh.to_rpc_status(raised)
    error = errors.from_rpc_error(
        AioRpcError(status.code, Metadata(), Metadata(*status.trailing_metadata), details=status.details)
    )
    assert isinstance(error, errors.Overloaded)
    assert (error.field, error.retry_after_s, error.definite) == ("documents", 0.25, True)


def test_the_drawn_tree_is_the_real_one() -> None:
    doc = errors.__doc__ or ""
    classes = [
        kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.OstrakaError)
    ]
    assert [kind.__name__ for kind in classes if f" {kind.__name__} " not in doc] == []
