"""`topology.json`: the topology record of a mesh on one machine, and the marker in each replica's directory.

A collection is written once and never guessed again: a replica's id stands for the data on its disk. Members change
through `record_file` while the mesh runs, and through `changing` while it does not.
"""

from __future__ import annotations

import fcntl
import json
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from observability.logs import logger
from services.runtime.atomic_file import make_directory, sync_directory, write_atomically
from services.runtime.config import CollectionConfig, Config, ConfigError
from services.runtime.topology import (
    BUCKETS,
    REPLICA_ID_BYTES,
    CollectionTopology,
    ShardTopology,
    Topology,
    Voter,
    shard_from_json,
    shard_of,
    shard_problem,
    shard_to_json,
    successor_problem,
)

FORMAT = 1
MARKER = "replica.json"
"""In each replica's directory: whose data it holds."""
REMOVED = "removed_epoch"
"""In the marker of a replica that left: in which epoch that was seen."""
_LOG = logger("runtime")


def load(config: Config) -> Topology:
    """Read the record. Raises ConfigError when it is missing, damaged, or contradicts the mesh file."""
    raw = _read(config.topology_path)
    if raw is None:
        raise ConfigError(f"{config.topology_path} does not exist; `ostraka up` makes it")
    missing = sorted(set(config.collections) - set(raw))
    if missing:
        raise ConfigError(
            f"{config.topology_path} lacks collection {missing[0]!r} of {config.path}; `ostraka up` adds it"
        )
    return Topology(
        {name: _checked(config, name, settings, raw[name]) for name, settings in config.collections.items()}
    )


def bootstrap(config: Config) -> Topology:
    """Make the record, or add collections that are new in the mesh file; keep everything that is there.

    Each replica's directory and marker are durable before the record names them. Safe to call again and from
    several processes. Raises ConfigError as `load` does.
    """
    make_directory(config.data_dir)
    with _locked(lock_path(config)):
        raw = _read(config.topology_path) or {}
        new = [name for name in config.collections if name not in raw]
        if new:
            seats = sum(len(shard["voters"]) for known in raw.values() for shard in known["shards"].values())
            for name in new:
                made = _spread(config.collections[name], tuple(config.nodes), seats)
                seats += len(made.shards) * config.collections[name].replicas
                _make_replicas(config, name, made)
                raw[name] = asdict(made)
            write_atomically(config.topology_path, _dump({"format": FORMAT, "collections": raw}))
    return load(config)


class TopologyChange:
    """The record while it is locked; for replacing replicas of a mesh that is not running."""

    def __init__(self, config: Config, raw: dict[str, Any]) -> None:
        self._config = config
        self._raw = raw

    def planned(self, collection: str, buckets: Sequence[int], epochs: Mapping[int, int]) -> CollectionTopology:
        """New replica ids for every voter, on the nodes that hold the collection now, or spread when there are none.

        `epochs`: the least epoch of each shard, to be exceeded. Raises ConfigError when the record does not fit.
        """
        settings = self._config.collections[collection]
        known = self._known(collection)
        made = known or _spread(settings, tuple(self._config.nodes), self._seats())
        shards = {
            shard: ShardTopology(
                max(epochs[shard], members.epoch if known else 0) + 1,
                tuple(Voter(_new_id(), voter.node) for voter in members.voters),
                members.read_quorum,
                members.write_quorum,
                removed=tuple(sorted({*members.removed, *(m.replica_id for m in members.members())})) if known else (),
            )
            for shard, members in made.shards.items()
        }
        return CollectionTopology(shards, tuple(buckets))

    def replace(self, collections: Mapping[str, CollectionTopology]) -> list[Voter]:
        """Write the record with these collections in it, atomically; the replicas that they replace.

        The directories of the new voters must be durable. Raises OSError, nothing changed.
        """
        known = [topology for name in collections if (topology := self._known(name)) is not None]
        raw = {**self._raw, **{name: asdict(topology) for name, topology in collections.items()}}
        write_atomically(self._config.topology_path, _dump({"format": FORMAT, "collections": raw}))
        return [member for topology in known for record in topology.shards.values() for member in record.members()]

    def _known(self, collection: str) -> CollectionTopology | None:
        if collection not in self._raw:
            return None
        return _checked(self._config, collection, self._config.collections[collection], self._raw[collection])

    def _seats(self) -> int:
        return sum(len(shard["voters"]) for known in self._raw.values() for shard in known["shards"].values())


def named(config: Config) -> list[Voter]:
    """Every replica that the record names, of collections that the mesh file no longer declares too.

    Empty when there is no record. Raises ConfigError.
    """
    raw = _read(config.topology_path) or {}
    return [
        member
        for known in raw.values()
        for shard in known["shards"].values()
        for member in shard_from_json(shard).members()
    ]


@contextmanager
def changing(config: Config) -> Iterator[TopologyChange]:
    """The record, locked against `bootstrap` and other changes. Raises ConfigError when it cannot be read."""
    with _locked(lock_path(config)):
        yield TopologyChange(config, _read(config.topology_path) or {})


def lock_path(config: Config) -> Path:
    """Locked by whoever changes the record."""
    return config.data_dir / "topology.lock"


def swap_shard(
    config: Config, collection: str, shard: int, expected_epoch: int, record: ShardTopology
) -> ShardTopology:
    """`RecordStore.swap` for a caller that holds the lock. Blocks. Raises ConfigError, nothing changed."""
    stored = shard_of(load(config), collection, shard)
    if stored.epoch != expected_epoch:
        return stored
    where = f"collection {collection!r}, shard {shard}"
    problem = shard_problem(record, allow_weak=config.collections[collection].allow_weak)
    if problem := problem or successor_problem(stored, record):
        raise ConfigError(f"{where}: refused: {problem}")
    if unknown := [member.node for member in record.members() if member.node not in config.nodes]:
        remedy = f"add [nodes.{unknown[0]}] to {config.path} and restart the processes of the mesh, one by one"
        raise ConfigError(f"{where}: refused: {remedy}")
    raw = _read(config.topology_path)
    assert raw is not None, "it was loaded just now"
    raw[collection]["shards"][str(shard)] = shard_to_json(record)
    write_atomically(config.topology_path, _dump({"format": FORMAT, "collections": raw}))
    return record


def mark_removed(config: Config, node: str, topology: Topology) -> None:
    """Note in the directories of the node's replicas that left that they did, durably; once.

    So they stay ended even where a record from a backup names them again. Blocks. Raises OSError.
    """
    left = {
        replica_id: (collection, shard, record.epoch)
        for collection, known in topology.collections.items()
        for shard, record in known.shards.items()
        for replica_id in record.removed
    }
    for replica_id, (collection, shard, epoch) in left.items():
        directory = config.replica_dir(node, replica_id)
        if not directory.is_dir() or REMOVED in _read_marker(directory / MARKER):
            continue
        marker = _marker(collection, shard, Voter(replica_id, node))
        write_atomically(directory / MARKER, _dump({**marker, REMOVED: epoch}))
        _LOG.warning("replica has left the mesh; its directory can be deleted", directory=str(directory), epoch=epoch)


def _read_marker(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def replica_problem(config: Config, collection: str, shard: int, voter: Voter) -> str:
    """Why this replica's directory cannot be served from, "" when it can.

    A directory without its marker lost its disk: it must not come back under the same id, because it would
    vote as if it still had what it acknowledged.
    """
    path = config.replica_dir(voter.node, voter.replica_id) / MARKER
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        return f"{path} is missing: the replica lost its disk; a replica never returns under its id"
    except (OSError, ValueError) as error:
        return f"{path} cannot be read: {error}"
    if isinstance(found, dict) and REMOVED in found:
        return (
            f"{path.parent} is of a replica that left in epoch {found[REMOVED]}; a replica never returns under its id: "
            "add a new one, and delete the directory"
        )
    expected = _marker(collection, shard, voter)
    return "" if found == expected else f"{path} says {found}, expected {expected}"


def _spread(settings: CollectionConfig, nodes: tuple[str, ...], first_seat: int) -> CollectionTopology:
    """New replicas, round robin over the nodes from `first_seat` on; N <= nodes, so a shard's nodes differ."""
    shards = {}
    for shard in range(settings.shards):
        start = first_seat + shard * settings.replicas
        voters = tuple(Voter(_new_id(), nodes[(start + place) % len(nodes)]) for place in range(settings.replicas))
        shards[shard] = ShardTopology(1, voters, settings.read_quorum, settings.write_quorum)
    return CollectionTopology(shards, tuple(bucket % settings.shards for bucket in range(BUCKETS)))


def make_replica(config: Config, collection: str, shard: int, voter: Voter) -> Path:
    """A new replica's directory with its marker, durable. Raises OSError."""
    directory = config.replica_dir(voter.node, voter.replica_id)
    directory.mkdir(parents=True)
    write_atomically(directory / MARKER, _dump(_marker(collection, shard, voter)))
    for parent in (directory.parent, directory.parent.parent, config.data_dir):
        sync_directory(parent)
    return directory


def _make_replicas(config: Config, collection: str, topology: CollectionTopology) -> None:
    for shard, members in topology.shards.items():
        for voter in members.voters:
            make_replica(config, collection, shard, voter)


def _new_id() -> str:
    return secrets.token_hex(REPLICA_ID_BYTES)


def _marker(collection: str, shard: int, voter: Voter) -> dict[str, Any]:
    return {"replica_id": voter.replica_id, "collection": collection, "shard": shard, "format": FORMAT}


def _read(path: Path) -> dict[str, Any] | None:
    """The collections of the file as JSON; None when there is no file."""
    try:
        raw = json.loads(path.read_bytes())
        if raw["format"] != FORMAT:
            raise ConfigError(f"{path} has format {raw['format']!r}; this version reads {FORMAT}")
        return dict(raw["collections"])
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise _damaged(path, repr(error)) from error


def _checked(config: Config, name: str, settings: CollectionConfig, raw: Any) -> CollectionTopology:
    """One collection of the file, well-formed and in agreement with the mesh file."""
    path = config.topology_path
    try:
        shards = {int(key): shard_from_json(value) for key, value in raw["shards"].items()}
        buckets = tuple(int(shard) for shard in raw["buckets"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _damaged(path, f"collection {name!r}: {error!r}") from error
    if len(buckets) != BUCKETS or not shards or set(shards) != set(range(len(shards))) or set(buckets) - set(shards):
        raise _damaged(path, f"collection {name!r}: the bucket table does not fit its shards")
    for shard, record in shards.items():
        if problem := shard_problem(record, allow_weak=settings.allow_weak):
            raise _damaged(path, f"collection {name!r}, shard {shard}: {problem}")
    ids = [member.replica_id for record in shards.values() for member in record.members()]
    if len(set(ids)) != len(ids):
        raise _damaged(path, f"collection {name!r}: replica ids must be distinct; two shards share one")
    _agree(config, name, settings, shards)
    return CollectionTopology(shards, buckets)


def _agree(config: Config, name: str, settings: CollectionConfig, shards: Mapping[int, ShardTopology]) -> None:
    where, remedy = f"collections.{name}", "set it back, or begin with a new mesh.data_dir and ingest again"
    if len(shards) != settings.shards:
        raise ConfigError(f"{where}.shards is {settings.shards} but the data has {len(shards)}; {remedy}")
    for record in shards.values():
        facts = {
            "replicas": len(record.voters),
            "read_quorum": record.read_quorum,
            "write_quorum": record.write_quorum,
        }
        for key, fact in facts.items():
            # The mesh file says how a collection begins; once members have changed the record alone counts.
            if record.epoch == 1 and getattr(settings, key) != fact:
                raise ConfigError(
                    f"{where}.{key} is {getattr(settings, key)} but the data was made with {fact}; {remedy}"
                )
        for member in record.members():
            if member.node not in config.nodes:
                raise ConfigError(
                    f"[nodes.{member.node}] is not in {config.path} but holds replica {member.replica_id} of "
                    f"{name!r}; put the node back, or begin with a new mesh.data_dir and ingest again"
                )


def _damaged(path: Path, why: str) -> ConfigError:
    return ConfigError(f"{path} is damaged ({why}); restore it from a backup: it names the replicas of your data")


def _dump(value: Any) -> bytes:
    return json.dumps(value, indent=1).encode() + b"\n"


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
