"""What an index file says of itself: a trailer behind FAISS's bytes, which FAISS does not read.

    FAISS bytes | JSON (utf-8) | length of the JSON (u32 little endian) | b"OSTRIDX1"

FAISS reads some foreign files without complaint; the trailer names kind, dimensions, rows and FAISS version, so that a
file of another collection or library is refused by a sentence instead of giving wrong neighbours.
"""

from __future__ import annotations

import json
import struct
from dataclasses import asdict, dataclass
from pathlib import Path

from services.shard.faiss_index.kinds import Kind
from services.shard.faiss_index.library import VERSION

MAGIC = b"OSTRIDX1"
_TAIL = struct.Struct("<I8s")
TRAILER_BYTES_MAX = 1 << 20
"""A longer one is damage: the thresholds of 4,096 dimensions take 32 KiB of hex."""


class IndexFileError(OSError):
    """An index file that cannot be used; the message says which property is wrong."""


@dataclass(frozen=True, slots=True)
class Trailer:
    """Facts about the FAISS bytes before it."""

    kind: str
    dim: int
    rows: int
    length: int
    """FAISS bytes."""
    faiss: str = VERSION
    thresholds: str = ""
    """Hex of float32 (dim,), little endian: where the sign of a binary index's dimensions changes."""

    def to_bytes(self) -> bytes:
        body = json.dumps(asdict(self), sort_keys=True).encode()
        return body + _TAIL.pack(len(body), MAGIC)


def parse(data: bytes, size: int, what: str) -> Trailer:
    """The trailer at the end of `data`, the last bytes of something `size` bytes long. Raises IndexFileError."""
    if len(data) < _TAIL.size or data[-len(MAGIC) :] != MAGIC:
        raise IndexFileError(f"{what}: cut short, or not an index file: it does not end with its trailer")
    length, _ = _TAIL.unpack(data[-_TAIL.size :])
    body = data[-_TAIL.size - length : -_TAIL.size]
    try:
        trailer = Trailer(**json.loads(body))
        Kind(trailer.kind)
        bytes.fromhex(trailer.thresholds)
    except (ValueError, TypeError, AttributeError) as error:
        raise IndexFileError(f"{what}: its trailer cannot be read: {error}") from error
    if trailer.length != size - length - _TAIL.size:
        raise IndexFileError(f"{what}: {size} bytes, but its trailer belongs to {trailer.length} bytes of index")
    return trailer


def append(path: Path, trailer: Trailer) -> None:
    """Put the trailer behind FAISS's bytes."""
    with path.open("ab") as file:
        file.write(trailer.to_bytes())


def trailer_of(path: Path, kind: Kind | None, dim: int | None) -> Trailer:
    """Read and check a file's trailer; `kind` and `dim` None accept any. Raises IndexFileError, OSError."""
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size - TRAILER_BYTES_MAX))
        trailer = parse(file.read(), size, str(path))
    if trailer.faiss != VERSION:
        raise IndexFileError(f"{path}: written by FAISS {trailer.faiss}; this is {VERSION}")
    if kind is not None and trailer.kind != kind:
        raise IndexFileError(f"{path}: an index of kind {trailer.kind}; {kind} is wanted")
    if dim is not None and trailer.dim != dim:
        raise IndexFileError(f"{path}: vectors of {trailer.dim} dimensions; {dim} are wanted")
    return trailer
