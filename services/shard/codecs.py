"""The codecs of one collection on one node: content-addressed files and a durable list of them.

A codec is a trained index without rows (centroids, quantiser tables). All replicas of a collection encode with the same
one, so that their candidates and their index epochs agree. Codecs are ordered by (generation, sha256) and the greatest
known one is current; since every node keeps the greatest it has seen, nodes that exchange codecs in any order agree.
Older codecs stay while segments name them, and a few beyond that.

    codecs/COLLECTION/record.json       what is here, written last
    codecs/COLLECTION/SHA256.faiss      the bytes
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from weakref import WeakValueDictionary

from observability.logs import logger
from services.shard import faiss_index, files

RECORD_FILE = "record.json"
SUFFIX = ".faiss"
FORMAT = 1
KEPT_MAX = 4
"""Codecs kept though no segment names them, the current one included."""
CODEC_BYTES_MAX = 256 * 1024 * 1024
"""A larger codec is refused: 16,384 centroids of 4,096 dimensions are 256 MiB."""
SHORT = 8
"""Hex digits of a codec's short name, which segments and index epochs carry."""
_LOG = logger("shard")


class CodecRefusedError(ValueError):
    """A codec that cannot be taken; the message says which property is wrong. Nothing was changed."""


@dataclass(frozen=True, slots=True)
class CodecRecord:
    """What is known of a codec without its bytes."""

    generation: int
    """From 1; the owner of training counts."""
    sha256: str
    """Hex, of the bytes."""
    factory: str
    """FAISS factory string, as named in provenance."""
    trained_rows: int
    basis_rows: int
    """Live rows of the collection when it was trained."""
    error_basis: float = 0.0
    """Mean squared residual of rows that were held out of training; 0: unknown."""
    imbalance_basis: float = 0.0
    """List imbalance, estimated from the same rows: mean squared list length / squared mean; 0: unknown."""

    @property
    def short(self) -> str:
        """The codec's name in segments and index epochs."""
        return self.sha256[:SHORT]

    @property
    def rank(self) -> tuple[int, str]:
        """The greatest rank wins everywhere."""
        return self.generation, self.sha256


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Codec:
    """A codec with its verified bytes, which `faiss_index` turns into an empty index."""

    record: CodecRecord
    data: bytes

    @property
    def short(self) -> str:
        return self.record.short


@dataclass(frozen=True, slots=True)
class CodecFacts:
    """What FAISS says of the bytes."""

    factory: str
    dim: int
    rows: int


def inspect(data: bytes) -> CodecFacts:
    """Read codec bytes with FAISS. Raises CodecRefusedError."""
    try:
        index = faiss_index.from_codec(data)
        return CodecFacts(index.factory, index.dim, index.rows)
    except (RuntimeError, OSError, AttributeError, TypeError, ValueError) as error:
        raise CodecRefusedError(f"codec: FAISS cannot read it ({str(error)[-160:]})") from error


def family(factory: str) -> str:
    """A factory string without its numbers: "IVF1024,PQ96x4fs" and "IVF256,PQ16x4fs" are of one family."""
    return re.sub(r"\d+", "*", factory)


class CodecStore:
    """Thread-safe. Readers get verified bytes; a file that no longer has its hash is dropped and fetched again."""

    def __init__(
        self,
        directory: Path,
        collection: str,
        kind: str,
        dim: int,
        *,
        inspect: Callable[[bytes], CodecFacts] = inspect,
    ) -> None:
        """Open or create `directory`. `kind`: the family of factory strings that the collection is configured for.

        Raises OSError. A record that cannot be read counts as none: peers still have the codecs.
        """
        self.directory = directory
        self.collection = collection
        self.kind = kind
        self.dim = dim
        self._inspect = inspect
        self._lock = threading.RLock()
        self._loaded: WeakValueDictionary[str, Codec] = WeakValueDictionary()
        files.make_directory(directory)
        self._records = self._read()
        self._remove_strays()

    def record(self) -> CodecRecord | None:
        """The current codec's record, without reading its file."""
        with self._lock:
            return max(self._records.values(), key=lambda record: record.rank, default=None)

    def records(self) -> tuple[CodecRecord, ...]:
        """Every codec that is here, least rank first."""
        with self._lock:
            return tuple(sorted(self._records.values(), key=lambda record: record.rank))

    def current(self) -> Codec | None:
        """The greatest codec whose file is sound; None when there is none yet."""
        with self._lock:
            while (record := self.record()) is not None:
                codec = self._load(record)
                if codec is not None:
                    return codec
        return None

    def by_id(self, short: str) -> Codec | None:
        """The codec of this short name, or None when it is not here or its file is damaged."""
        with self._lock:
            record = next((each for each in self._records.values() if each.short == short), None)
            return None if record is None else self._load(record)

    def offer(self, record: CodecRecord, data: bytes) -> bool:
        """Take a codec that was trained here or came from a peer; whether it is new, or known bytes of a later
        generation: training again may give the same.

        Durable when this returns. Raises CodecRefusedError and OSError, nothing changed.
        """
        with self._lock:
            known = self._records.get(record.sha256)
            if known is not None and known.rank >= record.rank:
                return False
            self._check(record, data)
            files.replace_file(self._path(record), data)
            records = {**self._records, record.sha256: record}
            self._write(records)
            self._records = records
            self._loaded.pop(record.sha256, None)
        _LOG.info("codec taken", collection=self.collection, codec=record.short, **_described(record))
        return True

    def retain(self, named: Iterable[str]) -> None:
        """Forget codecs beyond the KEPT_MAX greatest whose short names are not in `named`. Raises OSError."""
        with self._lock:
            ranked = sorted(self._records.values(), key=lambda record: record.rank, reverse=True)
            in_use = set(named)
            gone = [record for record in ranked[KEPT_MAX:] if record.short not in in_use]
            if not gone:
                return
            for record in gone:
                self._forget(record)
            self._write(self._records)
        for record in gone:
            files.remove_tree(self._path(record))

    def _check(self, record: CodecRecord, data: bytes) -> None:
        where = f"codec {record.short} of {self.collection!r}"
        if record.generation < 1:
            raise CodecRefusedError(f"{where}: generation must be at least 1, not {record.generation}")
        if not 0 < len(data) <= CODEC_BYTES_MAX:
            raise CodecRefusedError(f"{where}: 1 to {CODEC_BYTES_MAX} bytes, not {len(data)}")
        found = hashlib.sha256(data).hexdigest()
        if found != record.sha256:
            raise CodecRefusedError(f"{where}: the bytes have sha256 {found}, the record says {record.sha256}")
        facts = self._inspect(data)
        if facts.dim != self.dim:
            raise CodecRefusedError(f"{where}: {facts.dim} dimensions, the collection has {self.dim}")
        if facts.rows:
            raise CodecRefusedError(f"{where}: it holds {facts.rows} rows, a codec holds none")
        if facts.factory != record.factory:
            raise CodecRefusedError(f"{where}: it is {facts.factory}, the record says {record.factory}")
        if family(facts.factory) != self.kind:
            raise CodecRefusedError(f"{where}: index kind {family(facts.factory)}, the collection has {self.kind}")

    def _load(self, record: CodecRecord) -> Codec | None:
        """The codec with its bytes, verified; a damaged one is forgotten so that a peer's copy can take its place."""
        known = self._loaded.get(record.sha256)
        if known is not None:
            return known
        try:
            data = self._path(record).read_bytes()
        except OSError as error:
            reason = str(error)
        else:
            if hashlib.sha256(data).hexdigest() == record.sha256:
                codec = self._loaded[record.sha256] = Codec(record, data)
                return codec
            reason = "its file differs from its name"
        _LOG.error("codec damaged; it is fetched anew", collection=self.collection, codec=record.short, reason=reason)
        self._forget(record)
        return None

    def _forget(self, record: CodecRecord) -> None:
        self._records = {sha256: each for sha256, each in self._records.items() if sha256 != record.sha256}
        self._loaded.pop(record.sha256, None)

    def _path(self, record: CodecRecord) -> Path:
        return self.directory / f"{record.sha256}{SUFFIX}"

    def _write(self, records: dict[str, CodecRecord]) -> None:
        content = {
            "format": FORMAT,
            "collection": self.collection,
            "kind": self.kind,
            "dim": self.dim,
            "codecs": [asdict(record) for record in sorted(records.values(), key=lambda each: each.rank)],
        }
        files.replace_file(self.directory / RECORD_FILE, json.dumps(content, indent=1).encode() + b"\n")

    def _read(self) -> dict[str, CodecRecord]:
        path = self.directory / RECORD_FILE
        try:
            raw = json.loads(path.read_bytes())
            mine = (FORMAT, self.collection, self.kind, self.dim)
            theirs = (raw["format"], raw["collection"], raw["kind"], raw["dim"])
            if theirs != mine:
                # Another index kind was configured since: its codecs are of no use to this one.
                _LOG.warning("codecs of another kind are set aside", path=str(path), found=theirs, expected=mine)
                return {}
            records = [CodecRecord(**each) for each in raw["codecs"]]
        except FileNotFoundError:
            return {}
        except (KeyError, TypeError, ValueError) as error:
            _LOG.error("codec record damaged; codecs are fetched anew", path=str(path), reason=repr(error))
            return {}
        return {record.sha256: record for record in records if self._path(record).is_file()}

    def _remove_strays(self) -> None:
        """Files that the record does not name: a crash came between the two writes."""
        kept = {self._path(record).name for record in self._records.values()} | {RECORD_FILE}
        for entry in self.directory.iterdir():
            if entry.name not in kept:
                files.remove_tree(entry)


def _described(record: CodecRecord) -> dict[str, str | int]:
    return {
        "generation": record.generation,
        "index_kind": record.factory,
        "trained_rows": record.trained_rows,
        "basis_rows": record.basis_rows,
    }
