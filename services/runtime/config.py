"""The mesh file and the environment, as frozen values.

One TOML file describes one mesh; every process reads the same file and picks its part. Unknown keys,
missing files and impossible relations are `ConfigError`s that name the key. This is the only module that
reads the environment: `OSTRAKA_<SECTION>_<KEY>` overrides a scalar of a top-level section, for example
`OSTRAKA_GENERATOR_BASE_URL`.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_type_hints

ENV_PREFIX = "OSTRAKA_"
MESH_FILE_DEFAULT = "mesh.toml"


class ConfigError(ValueError):
    """The mesh file or the environment says something that cannot be obeyed; the message names the key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MeshConfig:
    """`[mesh]`: what the whole mesh shares."""

    data_dir: Path = Path(".mesh")
    """Everything the mesh writes: replicas, topology, certificates, logs, traces. Relative to the mesh file."""
    deadline_ms_default: int = 10_000
    """Deadline given to a call that carries none."""
    deadline_ms_max: int = 120_000
    """A longer deadline is shortened to this."""
    message_bytes_max: int = 16 * 1024 * 1024
    """Largest gRPC message sent or received."""
    streams_max: int = 512
    """Concurrent streams a server accepts per connection."""
    drain_s: float = 5.0
    """How long a server finishes calls under way after the first stop signal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TelemetryConfig:
    """`[telemetry]`: traces and logs."""

    sample_ratio: float = 1.0
    """Share of root traces kept; a caller's sampled flag wins."""
    otlp_endpoint: str = ""
    """OTLP gRPC endpoint; empty: OTLP-JSON files in the data directory. `OTEL_EXPORTER_OTLP_ENDPOINT` sets it."""
    file_bytes_max: int = 64 * 1024 * 1024
    """A trace file is rotated at this size; one predecessor is kept."""
    queue_spans_max: int = 16_384
    """Spans waiting for export; more are dropped and counted."""
    include_text: bool = False
    """Put passage texts into spans. Off: ids, digests and scores only."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedConfig:
    """`[embed]`: the texts-to-vectors service."""

    addresses: tuple[str, ...] = ("127.0.0.1:7401",)
    """Where the embed servers listen; callers go round robin."""
    model: str = "all-MiniLM-L6-v2"
    """The packaged default, or any sentence-transformers name or path."""
    model_sha256: str = ""
    """Expected sha256 of `model.safetensors`; empty: known for the default, unchecked for others."""
    threads: int = 0
    """Torch threads; 0: one per core."""
    batch_texts_max: int = 64
    """Texts in one forward pass."""
    queue_texts_max: int = 2_048
    """Texts waiting; more are refused with RESOURCE_EXHAUSTED."""
    request_texts_max: int = 512
    """Texts in one call."""
    text_bytes_max: int = 65_536
    """Bytes of one text in UTF-8."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterConfig:
    """`[router]`: the coordinator."""

    addresses: tuple[str, ...] = ("127.0.0.1:7402",)
    query_cache_entries: int = 4_096
    """Query embeddings kept, least recently used out first."""
    k_max: int = 1_000
    """Most hits a query may ask for."""
    queries_max: int = 256
    """Queries in one Search."""
    documents_max: int = 256
    """Documents in one Upsert, Delete or Get."""
    document_passages_max: int = 4_096
    """Passages in one document."""
    metadata_bytes_max: int = 16_384
    """Metadata of one passage, keys and values in UTF-8."""
    text_bytes_max: int = 65_536
    """One passage's text, or a query, in UTF-8."""
    calls_inflight_max: int = 1_024
    """Calls under way; more are refused with RESOURCE_EXHAUSTED."""
    summary_hedge_ms: int = 5
    """After R answers, how long a summary round waits for the rest."""
    search_wait_ms: int = 50
    """How long a replica waits for missing batches before it pulls them."""
    leg_hedge_ms: int = 150
    """A second replica is asked when the first has not answered by then."""
    write_retry_ms: int = 100
    """Pause before a voter that did not answer gets the same batch again."""
    relevance_min: float = 0.25
    """Cosine below which a passage is not put into a prompt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratorConfig:
    """`[generator]`: passages and a question to a cited answer."""

    addresses: tuple[str, ...] = ("127.0.0.1:7403",)
    backend: Literal["extractive", "openai"] = "extractive"
    base_url: str = ""
    """OpenAI-compatible endpoint, for example http://127.0.0.1:7480/v1."""
    model: str = "extractive"
    api_key_env: str = "OPENAI_API_KEY"
    """Name of the environment variable that holds the key; never the key itself."""
    context_tokens_max: int = 2_048
    """Prompt and answer together."""
    answer_tokens_max: int = 512
    request_timeout_s: float = 60.0
    temperature: float = 0.0
    calls_inflight_max: int = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardConfig:
    """`[shard]`: what every shard node shares."""

    delta_rows_flush: int = 8_192
    """Rows in the exact delta before it is flushed into a segment."""
    train_rows_min: int = 9_984
    """Rows before IVF-PQ is trained (39 x 256, the least k-means accepts without warning)."""
    batch_rows_max: int = 256
    """Rows in one write batch."""
    batch_bytes_max: int = 1024 * 1024
    group_commit_rows: int = 256
    group_commit_bytes: int = 4 * 1024 * 1024
    write_queue_max: int = 256
    """Write batches waiting for the writer thread."""
    search_threads: int = 0
    """Search threads; 0: one per core."""
    search_queue_max: int = 256
    disk_reserve_bytes: int = 256 * 1024 * 1024
    """Writes are refused below this much free space."""
    gossip_ms: int = 500
    write_age_ms_max: int = 60_000
    """A write whose version is older than this is refused."""
    clock_skew_ms_max: int = 5_000
    """A write whose version is this far ahead is refused."""
    superseded_keep_ms: int = 120_000
    """Superseded rows stay on disk this long, for searches that began before."""
    recall_target: float = 0.99
    """Recall@10 that nprobe and the candidate count are chosen for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeConfig:
    """`[nodes.NAME]`: one shard node."""

    address: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectionConfig:
    """`[collections.NAME]`: a named set of documents with one embedding model."""

    shards: int = 2
    replicas: int = 3
    """N: voters per shard."""
    read_quorum: int = 2
    """R: voters a read hears."""
    write_quorum: int = 2
    """W: voters that hold a write before it is acknowledged."""
    allow_weak: bool = False
    """Permit R + W <= N; QUORUM is then marked weak in replies."""
    dim: int = 384
    embedding_model: str = "all-MiniLM-L6-v2"
    """Model id that vectors of this collection must come from."""
    embedding_revision: str = ""
    """Revision of that model; empty: any, and the first seen is reported."""


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
}
_SHARES = frozenset({"sample_ratio", "relevance_min", "recall_target"})
"""Keys whose values are shares, 0 to 1."""
_ZERO_ALLOWED = frozenset(
    {
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
    file = (path or Path(env.get(f"{ENV_PREFIX}MESH_FILE", MESH_FILE_DEFAULT))).absolute()
    try:
        raw = tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"mesh file {file} does not exist; `ostraka up` writes one, or name another") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"mesh file {file}: {error}") from error
    return parse(raw, file, env)


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
        from dataclasses import replace

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
    addresses = [node.address for node in config.nodes.values()]
    addresses += [*config.embed.addresses, *config.router.addresses, *config.generator.addresses]
    for address in addresses:
        host, _, port = address.rpartition(":")
        if not host or not port.isdigit() or int(port) > 65_535:
            raise ConfigError(f"address {address!r} is not HOST:PORT")
    for address in addresses:
        if addresses.count(address) > 1 and not address.endswith(":0"):
            raise ConfigError(f"address {address!r} is given to two processes")
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
