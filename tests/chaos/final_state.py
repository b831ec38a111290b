"""What the replicas of a stopped mesh have on their disks, by node."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from dataclasses import dataclass, field

from ostraka.v1 import passage_pb2
from services.quorum.clock import Version
from services.runtime import topology_file
from services.runtime.config import Config
from services.shard import schema
from services.shard.engine import DATABASE_FILE
from services.shard.store import Database
from tests.chaos.recorder import Stored
from tests.simulation.history import FinalReplica

_PASSAGES = "SELECT document, ordinal, hlc, src, payload FROM passages"


@dataclass(slots=True)
class Disks:
    """Every node's rows, all its shards together; a document belongs to one shard."""

    replicas: list[FinalReplica] = field(default_factory=list)
    keyed: dict[tuple[str, str], frozenset[Version]] = field(default_factory=dict)
    """(document, idempotency key) to every version that was written under it."""
    stored: list[Stored] = field(default_factory=list)
    """Every passage, superseded ones included."""


def read_disks(config: Config) -> Disks:
    """Open every replica's database. Raises StoreError."""
    disks = Disks()
    keyed: dict[tuple[str, str], set[Version]] = defaultdict(set)
    topology = topology_file.load(config)
    for node in config.nodes:
        heads: dict[str, Version] = {}
        live: set[tuple[str, Version, tuple[bytes, ...]]] = set()
        applied = hashlib.blake2b()
        for _, shard, voter in sorted(topology.replicas_of(node), key=lambda found: found[:2]):
            database = Database(config.replica_dir(node, voter.replica_id) / DATABASE_FILE, writable=False)
            try:
                spans = database.rows("SELECT src, lo, hi FROM applied ORDER BY src, lo")
                applied.update(f"{shard}:{spans}".encode())
                _read_keys(database, keyed)
                _read_rows(database, heads, live, disks.stored)
            finally:
                database.close()
        disks.replicas.append(FinalReplica(node, applied.digest(), heads, frozenset(live)))
    disks.keyed = {key: frozenset(versions) for key, versions in keyed.items()}
    return disks


def _read_keys(database: Database, keyed: dict[tuple[str, str], set[Version]]) -> None:
    for document_id, key, hlc, source in database.rows("SELECT document, key, hlc, version_src FROM op_keys"):
        keyed[document_id, key].add(schema.version_of(hlc, source))


def _read_rows(
    database: Database,
    heads: dict[str, Version],
    live: set[tuple[str, Version, tuple[bytes, ...]]],
    stored: list[Stored],
) -> None:
    contents: dict[tuple[str, Version], dict[int, bytes]] = defaultdict(dict)
    for document_id, ordinal, hlc, source, payload in database.rows(_PASSAGES):
        version = schema.version_of(hlc, source)
        content = passage_pb2.Passage.FromString(payload).text.encode()
        contents[document_id, version][ordinal] = content
        stored.append((document_id, content, version))
    for document_id, hlc, source, count in database.rows("SELECT document, hlc, src, n FROM heads"):
        version = heads[document_id] = schema.version_of(hlc, source)
        if count:
            found = contents[document_id, version]
            live.add((document_id, version, tuple(found.get(ordinal, b"") for ordinal in range(count))))
