"""The mesh file and the environment, as frozen values.

One TOML file describes one mesh; every process reads the same file and picks its part. Unknown keys,
missing files and impossible relations are `ConfigError`s that name the key. This is the only module that
reads the environment: `OSTRAKA_<SECTION>_<KEY>` overrides a scalar of a top-level section, for example
`OSTRAKA_GENERATOR_BASE_URL`.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, get_type_hints

from services.runtime.config_sections import (
    CollectionConfig,
    EmbedConfig,
    GeneratorConfig,
    LexicalConfig,
    MeshConfig,
    MetadataKind,
    NodeConfig,
    RouterConfig,
    ShardConfig,
    SnapshotsConfig,
    TelemetryConfig,
)

__all__ = (
    "CollectionConfig",
    "Config",
    "ConfigError",
    "EmbedConfig",
    "GeneratorConfig",
    "LexicalConfig",
    "MeshConfig",
    "MetadataKind",
    "NodeConfig",
    "RouterConfig",
    "ShardConfig",
    "SnapshotsConfig",
    "TelemetryConfig",
    "child_environment",
    "load",
    "parse",
    "secret",
)

ENV_PREFIX = "OSTRAKA_"
METADATA_FIELDS_MAX = 64
BUILT_IN_FIELDS: Mapping[str, MetadataKind] = {"document_id": "text", "source": "text"}
"""What every passage can be filtered by."""
_FIELD_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_FILTER_WORDS = frozenset({"and", "or", "not", "in", "true", "false"})
MESH_FILE_DEFAULT = "mesh.toml"
LEXICAL_K1_MAX = 10.0


class ConfigError(ValueError):
    """The mesh file or the environment says something that cannot be obeyed; the message names the key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The whole mesh file, validated."""

    path: Path
    """The mesh file itself, absolute."""
    mesh: MeshConfig = field(default_factory=MeshConfig)
    telemetry: TelemetryConfig = field(default_factory=TelemetryConfig)
    embed: EmbedConfig = field(default_factory=EmbedConfig)
    router: RouterConfig = field(default_factory=RouterConfig)
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    shard: ShardConfig = field(default_factory=ShardConfig)
    snapshots: SnapshotsConfig = field(default_factory=SnapshotsConfig)
    nodes: Mapping[str, NodeConfig] = field(default_factory=dict)
    collections: Mapping[str, CollectionConfig] = field(default_factory=dict)

    @property
    def data_dir(self) -> Path:
        """Absolute data directory."""
        return (self.path.parent / self.mesh.data_dir).resolve()

    @property
    def certs_dir(self) -> Path:
        return self.data_dir / "certs"

    @property
    def traces_dir(self) -> Path:
        return self.data_dir / "traces"

    @property
    def logs_dir(self) -> Path:
        return self.data_dir / "logs"

    @property
    def topology_path(self) -> Path:
        """The record of which replica ids vote for which shard."""
        return self.data_dir / "topology.json"

    def replica_dir(self, node: str, replica_id: str) -> Path:
        return self.data_dir / "nodes" / node / replica_id


_SECTIONS: dict[str, type[Any]] = {
    "mesh": MeshConfig,
    "telemetry": TelemetryConfig,
    "embed": EmbedConfig,
    "router": RouterConfig,
    "generator": GeneratorConfig,
    "shard": ShardConfig,
    "snapshots": SnapshotsConfig,
}
_SHARES = frozenset({"sample_ratio", "relevance_min", "recall_target", "background_cpu"})
"""Keys whose values are shares, 0 to 1."""
_ZERO_ALLOWED = frozenset(
    {
        "metrics_port",
        "threads",
        "search_threads",
        "temperature",
        "drain_s",
        "disk_reserve_bytes",
        "query_cache_entries",
        "leg_hedge_ms",
        "summary_hedge_ms",
    }
)
"""Numbers that may be 0; all others are at least 1."""
_TABLES: dict[str, type[Any]] = {"nodes": NodeConfig, "collections": CollectionConfig}


def load(path: Path | None = None, environ: Mapping[str, str] | None = None) -> Config:
    """Read and validate the mesh file.

    `path` None means `OSTRAKA_MESH_FILE`, else `mesh.toml` in the working directory. Raises ConfigError.
    """
    env = os.environ if environ is None else environ
    file = mesh_file_path(path, env)
    try:
        raw = tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"mesh file {file} does not exist; `ostraka up` writes one, or name another") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"mesh file {file}: {error}") from error
    return parse(raw, file, env)


def mesh_file_path(path: Path | None = None, environ: Mapping[str, str] | None = None) -> Path:
    """The absolute path that `load` reads, whether it exists or not."""
    env = os.environ if environ is None else environ
    return (path or Path(env.get(f"{ENV_PREFIX}MESH_FILE", MESH_FILE_DEFAULT))).absolute()


def parse(raw: Mapping[str, Any], path: Path, environ: Mapping[str, str]) -> Config:
    """Turn a parsed mesh file into a Config. Raises ConfigError."""
    unknown = sorted(set(raw) - set(_SECTIONS) - set(_TABLES))
    if unknown:
        raise ConfigError(f"{path}: unknown section [{unknown[0]}]; known: {', '.join([*_SECTIONS, *_TABLES])}")
    values: dict[str, Any] = {}
    for name, kind in _SECTIONS.items():
        section = dict(_table(raw.get(name, {}), name))
        section.update(_environment(name, kind, environ))
        values[name] = _build(kind, section, name)
    for name, kind in _TABLES.items():
        values[name] = {
            key: _build(kind, _table(row, f"{name}.{key}"), f"{name}.{key}")
            for key, row in _table(raw.get(name, {}), name).items()
        }
    config = Config(path=path, **values)
    if endpoint := environ.get("OTEL_EXPORTER_OTLP_ENDPOINT"):
        config = replace(config, telemetry=replace(config.telemetry, otlp_endpoint=endpoint))
    _validate(config)
    return config


def secret(name: str) -> str | None:
    """A secret from the environment by variable name; never logged, never an argument."""
    return os.environ.get(name)


def child_environment(**extra: str) -> dict[str, str]:
    """This process's environment with additions, for a child process."""
    return {**os.environ, **extra}


def _table(value: Any, name: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"[{name}] must be a table, not {type(value).__name__}")
    return value


def _environment(name: str, kind: type[Any], environ: Mapping[str, str]) -> dict[str, Any]:
    """Overrides for one section, converted to the type of the field they replace."""
    found: dict[str, Any] = {}
    hints = get_type_hints(kind)
    for item in fields(kind):
        text = environ.get(f"{ENV_PREFIX}{name}_{item.name}".upper())
        if text is None:
            continue
        hint = hints[item.name]
        try:
            if hint is bool:
                found[item.name] = {"true": True, "1": True, "false": False, "0": False}[text.lower()]
            elif hint is int:
                found[item.name] = int(text)
            elif hint is float:
                found[item.name] = float(text)
            elif hint == tuple[str, ...]:
                found[item.name] = [part.strip() for part in text.split(",")]
            else:
                found[item.name] = text
        except (ValueError, KeyError):
            raise ConfigError(f"{ENV_PREFIX}{name}_{item.name}".upper() + f": {text!r} is not a {hint}") from None
    return found


def _build(kind: type[Any], raw: Mapping[str, Any], name: str) -> Any:
    """One frozen section from its table; every key known, every type right."""
    hints = get_type_hints(kind)
    known = {item.name for item in fields(kind)}
    for key in raw:
        if key not in known:
            raise ConfigError(f"[{name}] has no key {key!r}; known: {', '.join(sorted(known))}")
    for item in fields(kind):
        if item.default is MISSING and item.default_factory is MISSING and item.name not in raw:
            raise ConfigError(f"[{name}] needs {item.name!r}")
    return kind(**{key: _convert(hints[key], value, f"{name}.{key}") for key, value in raw.items()})


def _convert(hint: Any, value: Any, name: str) -> Any:
    if hint is Path and isinstance(value, str):
        return Path(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and is_dataclass(hint):
        return _build(hint, _table(value, name), name)
    if hint == Mapping[str, MetadataKind]:
        return {key: _convert(MetadataKind, kind, f"{name}.{key}") for key, kind in _table(value, name).items()}
    if hint == tuple[str, ...]:
        if isinstance(value, list) and value and all(isinstance(part, str) for part in value):
            return tuple(value)
        raise ConfigError(f"{name} must be a non-empty list of strings")
    choices = getattr(hint, "__args__", None)
    if choices is not None and isinstance(choices[0], str):
        if value not in choices:
            raise ConfigError(f"{name} must be one of {', '.join(choices)}, not {value!r}")
        return value
    if type(value) is not hint:
        raise ConfigError(f"{name} must be {getattr(hint, '__name__', hint)}, not {value!r}")
    return value


def _validate(config: Config) -> None:
    """Relations between keys, and bounds."""
    for name in _SECTIONS:
        section = getattr(config, name)
        for item in fields(section):
            value = getattr(section, item.name)
            floor = 0 if item.name in _ZERO_ALLOWED else 1
            if item.name in _SHARES:
                if not 0 <= value <= 1:
                    raise ConfigError(f"{name}.{item.name} must be from 0 to 1, not {value}")
                continue
            if isinstance(value, (int, float)) and not isinstance(value, bool) and value < floor:
                raise ConfigError(f"{name}.{item.name} must be at least {floor}, not {value}")
    if config.generator.backend == "openai" and not config.generator.base_url:
        raise ConfigError("generator.base_url is needed when generator.backend is openai")
    if config.router.document_bytes_max > config.mesh.message_bytes_max * 3 // 4:
        raise ConfigError("router.document_bytes_max must leave a quarter of mesh.message_bytes_max for the message")
    addresses = [node.address for node in config.nodes.values()]
    addresses += [*config.embed.addresses, *config.router.addresses, *config.generator.addresses]
    for address in addresses:
        host, _, port = address.rpartition(":")
        if not host or not port.isdigit() or int(port) > 65_535:
            raise ConfigError(f"address {address!r} is not HOST:PORT")
    for address in addresses:
        if addresses.count(address) > 1 and not address.endswith(":0"):
            raise ConfigError(f"address {address!r} is given to two processes")
    last = config.telemetry.metrics_port + len(addresses) - 1
    if config.telemetry.metrics_port and last > 65_535:
        raise ConfigError(
            f"telemetry.metrics_port {config.telemetry.metrics_port} leaves no ports for {len(addresses)} processes"
        )
    for name, collection in config.collections.items():
        _validate_collection(name, collection, len(config.nodes))


def _validate_collection(name: str, c: CollectionConfig, nodes: int) -> None:
    where = f"collections.{name}"
    if not name or len(name) > 64 or not all(ch.isalnum() or ch in "-_" for ch in name):
        raise ConfigError(f"[{where}]: a collection name is 1 to 64 letters, digits, - or _")
    if not 1 <= c.shards <= 64:
        raise ConfigError(f"{where}.shards must be 1 to 64, not {c.shards}")
    if not 1 <= c.dim <= 4_096:
        raise ConfigError(f"{where}.dim must be 1 to 4096, not {c.dim}")
    if not 1 <= c.replicas <= 7:
        raise ConfigError(f"{where}.replicas must be 1 to 7, not {c.replicas}")
    if c.replicas > nodes:
        raise ConfigError(f"{where}.replicas is {c.replicas} but the mesh has {nodes} nodes; add nodes or lower it")
    for key in ("read_quorum", "write_quorum"):
        value = getattr(c, key)
        if not 1 <= value <= c.replicas:
            raise ConfigError(f"{where}.{key} must be 1 to {c.replicas} (replicas), not {value}")
    if c.read_quorum + c.write_quorum <= c.replicas and not c.allow_weak:
        raise ConfigError(
            f"{where}: read_quorum {c.read_quorum} + write_quorum {c.write_quorum} <= replicas {c.replicas}, so a read "
            "can miss an acknowledged write; raise one, or set allow_weak = true and give up the promise"
        )
    _validate_metadata(f"{where}.metadata", c.metadata)
    if not 0 <= c.lexical.k1 <= LEXICAL_K1_MAX:
        raise ConfigError(f"{where}.lexical.k1 must be from 0 to {LEXICAL_K1_MAX}, not {c.lexical.k1}")
    if not 0 <= c.lexical.b <= 1:
        raise ConfigError(f"{where}.lexical.b must be from 0 to 1, not {c.lexical.b}")


def _validate_metadata(where: str, fields_: Mapping[str, MetadataKind]) -> None:
    if len(fields_) > METADATA_FIELDS_MAX:
        raise ConfigError(f"[{where}] declares {len(fields_)} fields; at most {METADATA_FIELDS_MAX}")
    for name in fields_:
        if not _FIELD_NAME.fullmatch(name):
            raise ConfigError(f"{where}: {name!r} is not a field name: a letter or _, then up to 63 letters, digits, _")
        if name in BUILT_IN_FIELDS:
            raise ConfigError(f"{where}.{name}: {name} is built in, is text, and is not declared")
        if name.lower() in _FILTER_WORDS:
            raise ConfigError(f"{where}.{name}: {name} is a word of filter expressions and cannot name a field")
