"""Errors cross the wire whole, and every status code maps to an error."""

from __future__ import annotations

from typing import Any

import grpc
import pytest

from services.runtime import errors
from services.runtime.errors import ERROR_OF_CODE, MeshError, from_rpc_error, to_rpc_status

LEAVES = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, MeshError)]
LEAVES.remove(MeshError)


def over_the_wire(error: MeshError) -> MeshError:
    status: Any = to_rpc_status(error)
    metadata = grpc.aio.Metadata(*status.trailing_metadata)
    return from_rpc_error(grpc.aio.AioRpcError(status.code, grpc.aio.Metadata(), metadata, status.details))


def test_every_status_code_is_mapped() -> None:
    assert set(ERROR_OF_CODE) == set(grpc.StatusCode)


def test_every_error_is_reached_and_keeps_its_code() -> None:
    assert set(ERROR_OF_CODE.values()) == set(LEAVES)
    for kind in LEAVES:
        assert ERROR_OF_CODE[kind.code] is kind


@pytest.mark.parametrize("kind", LEAVES)
@pytest.mark.parametrize("definite", [True, False])
def test_everything_stated_crosses_the_wire(kind: type[MeshError], definite: bool) -> None:
    sent = kind("what is wrong", "k", retry_ms=1_250, reason="WHY", metadata={"k": "v"}, definite=definite)
    got = over_the_wire(sent)
    assert type(got) is kind
    assert (got.message, got.field, got.retry_ms, got.reason, got.metadata, got.definite) == (
        "what is wrong", "k", 1_250, "WHY", {"k": "v"}, definite,
    )  # fmt: skip


def test_defaults_cross_the_wire() -> None:
    got = over_the_wire(errors.NotFound("no such collection"))
    assert (got.field, got.retry_ms, got.reason, got.definite) == ("", 0, "NOT_FOUND", True)


def test_refusals_are_definite_and_silence_is_not() -> None:
    definite = {kind for kind in LEAVES if kind("x").definite}
    assert {kind.__name__ for kind in definite} == {
        "InvalidArgument", "NotFound", "FailedPrecondition", "PermissionDenied", "Unauthenticated", "Unimplemented",
        "ResourceExhausted",
    }  # fmt: skip


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK])
def test_a_bare_status_is_understood(code: grpc.StatusCode) -> None:
    got = from_rpc_error(grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), "why"))
    assert got.message == "why"
    assert isinstance(got, ERROR_OF_CODE[code])


def test_a_bare_resource_exhausted_is_indefinite() -> None:
    # gRPC itself raises it for a reply that is too large, after the work was done.
    bare = grpc.aio.AioRpcError(grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.aio.Metadata(), grpc.aio.Metadata(), "")
    assert not from_rpc_error(bare).definite


def test_damaged_details_are_ignored() -> None:
    metadata = grpc.aio.Metadata(("grpc-status-details-bin", b"\xff\xff\xff"))
    got = from_rpc_error(grpc.aio.AioRpcError(grpc.StatusCode.NOT_FOUND, grpc.aio.Metadata(), metadata, "gone"))
    assert (type(got), got.message) == (errors.NotFound, "gone")


def test_long_messages_are_cut() -> None:
    status: Any = to_rpc_status(errors.Internal("x" * 100_000))
    assert len(status.details) < 3_000
    assert len(status.trailing_metadata[0][1]) < 8_000


def test_text_names_the_field() -> None:
    assert str(errors.InvalidArgument("must be at least 1", "k")) == "k: must be at least 1"
