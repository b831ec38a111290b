"""Codec records as the contract carries them. Nothing is lost; what is not a record is a WireError."""

from __future__ import annotations

from ostraka.v1 import shard_pb2
from services.shard.codecs import CodecRecord
from services.shard.wire import WireError

SHA256_BYTES = 32


def record_to_wire(record: CodecRecord) -> shard_pb2.CodecRecord:
    return shard_pb2.CodecRecord(
        generation=record.generation,
        sha256=bytes.fromhex(record.sha256),
        factory=record.factory,
        trained_rows=record.trained_rows,
        basis_rows=record.basis_rows,
        error_basis=record.error_basis,
        imbalance_basis=record.imbalance_basis,
    )


def record_from_wire(message: shard_pb2.CodecRecord, field: str) -> CodecRecord:
    """Raises WireError naming the field."""
    if message.generation < 1:
        raise WireError(f"{field}.generation", f"must be at least 1, not {message.generation}")
    if len(message.sha256) != SHA256_BYTES:
        raise WireError(f"{field}.sha256", f"must be {SHA256_BYTES} bytes, not {len(message.sha256)}")
    return CodecRecord(
        generation=message.generation,
        sha256=message.sha256.hex(),
        factory=message.factory,
        trained_rows=message.trained_rows,
        basis_rows=message.basis_rows,
        error_basis=message.error_basis,
        imbalance_basis=message.imbalance_basis,
    )
